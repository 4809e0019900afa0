"""Files of a killed run that are damaged in every way: it resumes with equal curves, or one sentence refuses it."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path
from random import Random

from tests.chaos.trials import RUN, Attack, bakeoff, equal, place, undisturbed_run
from tests.commands import dies_in_update
from tests.damage import DAMAGE


def attacks(folder: Path, draw: Random) -> list[Attack]:
    """Every damage of every file of a run that was killed in update 6."""
    undisturbed_run(folder)
    bakeoff(place(folder / "killed"), *RUN, before=[partial(dies_in_update, 6)])
    killed = folder / "killed"
    files = [path for path in sorted(killed.rglob("*")) if path.is_file() and path.stat().st_size]
    cases = [(path, damage) for path in files if "update_000002" not in path.parts for damage in DAMAGE]
    return [
        Attack(
            "the newest checkpoint" if "checkpoints" in path.parts else "the folder of a run, and its store",
            f"{path.relative_to(killed)}: {damage}",
            partial(survives, folder / f"damage{number}", path, damage, f"{draw.random()}", folder),
        )
        for number, (path, damage) in enumerate(cases)
    ]


def survives(work: Path, path: Path, damage: str, seed: str, folder: Path) -> None:
    """Damages the copy of a file in a copy of the killed run, resumes that, and compares the curves."""
    shutil.copytree(folder / "killed", work)
    original = work / path.relative_to(folder / "killed")
    config = work / "out" / ".hydra" / "config.yaml"
    if config.exists():
        config.write_text(config.read_text().replace(str(folder / "killed"), str(work)))
    with closing(sqlite3.connect(work / "mlflow.db")) as store, store:  # which names the place of its artifacts
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            where = (str(folder / "killed"), str(work))
            store.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", where)
    DAMAGE[damage](original, Random(seed))
    result = bakeoff(work, "resume=out")
    if result.returncode == 0:
        equal(work, folder / "run")
    else:
        assert result.returncode == 2, result.stderr
