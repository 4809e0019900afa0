"""Where the files that travel with the package are: conf/, sweeps/ and analysis/.

In a checkout they stand beside src/; in a wheel they are inside the package.
"""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
ROOT = _PACKAGE if (_PACKAGE / "conf").is_dir() else _PACKAGE.parents[1]
CONF = ROOT / "conf"
SWEEPS = ROOT / "sweeps"
ANALYSIS = ROOT / "analysis"


def study_folders() -> list[Path]:
    """Folders with sweeps/ and analysis/: the user's ($BAKEOFF_STUDIES or the working folder), then the package's."""
    own = Path(os.environ.get("BAKEOFF_STUDIES", ".")).expanduser().resolve()
    return list(dict.fromkeys((own, ROOT)))


def study_file(kind: str, name: str) -> Path | None:
    """The first file kind/name in a folder of studies, as of ("sweeps", "methods.yaml"); none if there is none."""
    found = (folder / kind / name for folder in study_folders())
    return next((path for path in found if path.is_file()), None)


def study_names() -> list[str]:
    """The studies of every folder that holds some."""
    found = {path.stem for folder in study_folders() for path in (folder / "sweeps").glob("*.yaml")}
    return sorted(found - {"none"})


def page_file(study: str) -> Path | None:
    """The code of a study's page: pages/STUDY.py in the user's folder, or the package's; none if there is neither."""
    shipped = _PACKAGE / "report" / "pages" / f"{study}.py"
    return study_file("pages", f"{study}.py") or (shipped if shipped.is_file() else None)


def cache() -> Path:
    """The folder that keeps supervised starts and fetched weights: $BAKEOFF_CACHE or ~/.cache/bakeoff."""
    return Path(os.environ.get("BAKEOFF_CACHE", "~/.cache/bakeoff")).expanduser()
