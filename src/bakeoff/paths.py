"""Where the files that travel with the package are: conf/, sweeps/ and analysis/.

In a checkout they stand beside src/; in a wheel they are inside the package.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from bakeoff.errors import UserError

_PACKAGE = Path(__file__).resolve().parent
ROOT = _PACKAGE if (_PACKAGE / "conf").is_dir() else _PACKAGE.parents[1]
CONF = ROOT / "conf"
SWEEPS = ROOT / "sweeps"
ANALYSIS = ROOT / "analysis"
AD_HOC = "sweep"  # name of a sweep without a study, as of `bakeoff -m algorithm=ppo,grpo`
PAGES = _PACKAGE / "report" / "pages"


def commit() -> str:
    """The checkout's commit, `-dirty` where it has changes; empty outside of a checkout."""
    try:
        described = subprocess.run(
            ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return described.stdout.strip()


def near(path: str | Path) -> Path:
    """A path below the working folder, or beside it where that is analysis/, in which Jupyter starts a notebook."""
    beside = Path("..") / path
    return beside if Path.cwd().name == ANALYSIS.name and beside.exists() and not Path(path).exists() else Path(path)


def study_folders() -> list[Path]:
    """Folders with sweeps/ and the like: the user's ($BAKEOFF_STUDIES or the working folder), then the package's."""
    own = Path(os.environ.get("BAKEOFF_STUDIES") or near("sweeps").parent).expanduser().resolve()
    return list(dict.fromkeys((own, ROOT)))


def study_file(kind: str, name: str) -> Path | None:
    """The file kind/name of a study, as of ("sweeps", "methods.yaml"); none if there is none.

    Raises UserError if the user's folder and the package both have one: neither replaces the other silently.
    """
    return only_one([folder / kind / name for folder in study_folders()])


def only_one(places: list[Path]) -> Path | None:
    """The place at which there is a file, none if there is none; raises UserError if there are two."""
    found = [path for path in places if path.is_file()]
    if len(found) > 1:
        raise UserError(f"two studies share a file name: {found[0]} and {found[1]}; rename yours.")
    return found[0] if found else None


def study_names() -> list[str]:
    """The studies of every folder that holds some."""
    found = {path.stem for folder in study_folders() for path in (folder / "sweeps").glob("*.yaml")}
    return sorted(found - {"none"})


def page_file(study: str) -> Path | None:
    """The code of a study's page: pages/STUDY.py in the user's folder, or the package's; none if there is neither."""
    return only_one([study_folders()[0] / "pages" / f"{study}.py", PAGES / f"{study}.py"])


def refuse_shadowed() -> None:
    """Raises UserError for a file in the user's conf/ with the name of one of ours, which Hydra reads in its place."""
    for conf in {folder / "conf" for folder in study_folders()} - {CONF}:
        for path in conf.glob("*/**/*.yaml"):
            ours = CONF / path.relative_to(conf)
            if ours.is_file() and ours.read_bytes() != path.read_bytes():
                raise UserError(
                    f"'{path}' has the name of a file of bakeoff, which is read in its place; rename yours."
                )


def use_folder(folder: str | None) -> None:
    """Makes a folder the user's folder of studies, also in a launcher's processes."""
    if folder:
        os.environ["BAKEOFF_STUDIES"] = folder


def cache() -> Path:
    """The folder that keeps supervised starts and fetched weights: $BAKEOFF_CACHE or ~/.cache/bakeoff."""
    return Path(os.environ.get("BAKEOFF_CACHE", "~/.cache/bakeoff")).expanduser()
