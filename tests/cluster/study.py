"""A study of six small jobs, as a user starts it, and what it must come to whatever happens to its jobs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from bakeoff.progress import FILE
from tests.chaos.trials import SMALL, equal
from tests.commands import store_of

UPDATES = 150
PATIENCE = 1500.0  # seconds: jobs start slowly on a busy machine
STUDY = (
    *("-m", *SMALL, "algorithm=grpo,rloo,ppo", "seed=1,2", f"budget.limit={UPDATES}", "checkpoint.every=10"),
    *("evaluation.every=50", "tracking.completions_every=50", "hydra.sweep.dir=out"),
)


def begun(cwd: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """A command that runs; its output is in the files stdout and stderr of its working folder."""
    cwd.mkdir(parents=True, exist_ok=True)
    if "MLFLOW_TRACKING_URI" not in environment:
        store_of(cwd)
    command = [sys.executable, "-m", *arguments]
    with (cwd / "stdout").open("w") as out, (cwd / "stderr").open("w") as err:
        return subprocess.Popen(command, cwd=cwd, env=os.environ | environment, stdout=out, stderr=err, text=True)


def done(cwd: Path, *arguments: str, **environment: str) -> None:
    """Runs a command, which must succeed."""
    code = begun(cwd, *arguments, **environment).wait(PATIENCE)
    assert code == 0, (cwd / "stderr").read_text()[-3000:]


def progress(folder: Path) -> dict[str, Any]:
    try:
        report: dict[str, Any] = json.loads((folder / FILE).read_text())
    except (OSError, ValueError):
        return {}
    return report


def until(true: Callable[[], Any], command: subprocess.Popen[str], seconds: float = PATIENCE) -> Any:
    """The first value of a function that is true, while a command runs."""
    over = time.monotonic() + seconds
    while not (value := true()):
        assert command.poll() is None, f"the command has ended: {command.returncode}"
        assert time.monotonic() < over, "it takes too long"
        time.sleep(0.2)
    return value


def running(cwd: Path) -> list[Path]:
    """The folders of the jobs that are in the first half of their updates, and have a checkpoint."""
    reports = {folder: progress(folder) for folder in sorted((cwd / "out").glob("[0-9]*"))}
    return [f for f, each in reports.items() if each.get("state") == "running" and 12 < each["update"] < UPDATES // 2]


def descendants(pid: int) -> list[int]:
    """The processes that a process started, and those that they started."""
    children = [
        int(child) for each in Path(f"/proc/{pid}/task").glob("*/children") for child in each.read_text().split()
    ]
    return [*children, *(each for child in children for each in descendants(child))]


def process_of(folder: Path) -> int:
    """The process that holds the lock of a job's folder, 0 if there is none."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if link.readlink() == folder / ".lock":
                return int(link.parts[2])
    return 0


def same_report(one: Path, other: Path) -> None:
    """Asserts that two working folders have the same curves, bit for bit, and the same report."""
    equal(one, other)
    tables = []
    for cwd in (one, other):
        done(cwd, "bakeoff.report", "sweep")
        table = pd.read_csv(cwd / "reports" / "sweep" / "runs.csv")
        kept = [name for name in table if name in ("algorithm", "seed", "name") or "accuracy" in name]
        tables.append(table[kept].sort_values(["algorithm", "seed"]).reset_index(drop=True))
    pd.testing.assert_frame_equal(*tables, check_exact=True)
