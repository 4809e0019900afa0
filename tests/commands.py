"""Commands as a user types them, each in a process of its own.

The processes are forked from one that has imported everything, so that a start takes no seconds.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        *("bakeoff.__main__", "bakeoff.job", "bakeoff.memory", "bakeoff.reward_model"),
        *("mlflow.store.tracking.sqlalchemy_store", "transformers.models.llama.modeling_llama"),
    ]
)


def start(
    module: str, arguments: tuple[str, ...], cwd: Path, told: Path, *before: Callable[[], None]
) -> multiprocessing.context.ForkServerProcess:
    """Starts a command in `cwd`; its output goes to the folder `told`. Functions `before` it run in its process."""
    process = SERVER.Process(target=perform, args=(module, arguments, cwd, dict(os.environ), told, before))
    process.start()
    return process


def perform(
    module: str,
    arguments: tuple[str, ...],
    cwd: Path,
    environment: dict[str, str],
    told: Path,
    before: tuple[Callable[[], None], ...],
) -> None:
    """What the console script does, in this process."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(told / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = [module, *arguments]
    for function in before:
        function()
    try:
        import_module(module).main()
    finally:  # as an interpreter ends, with a launcher's processes; a forked one only goes
        threading._shutdown()
        atexit._run_exitfuncs()


def call(
    module: str, arguments: tuple[str, ...], cwd: Path, *before: Callable[[], None]
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, and returns its exit code and output.

    Where the folder has no store it gets an empty one: MLflow takes two seconds to make its tables. `start` gives none.
    """
    if not (cwd / "mlflow.db").exists():
        shutil.copy(empty_store(), cwd / "mlflow.db")
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder)
        process = start(module, arguments, cwd, told, *before)
        process.join(300)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"{module} {' '.join(arguments)} has not ended after 300 s")
        said = [(told / name).read_text() for name in ("stdout", "stderr")]
        return subprocess.CompletedProcess(arguments, process.exitcode, *said)


@cache
def empty_store() -> Path:
    """A store with tables and no run in it, made once by each process of the tests."""
    from mlflow import MlflowClient

    path = Path(tempfile.mkdtemp()) / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


def dies_in_update(number: int) -> None:
    """Lets the process kill itself at the start of this update, counted from 1."""
    run = import_module("bakeoff.run")
    update_once = run.update_once

    def dying(loop: Any, progress: float) -> Any:
        if loop.learner.counters.updates == number - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return update_once(loop, progress)

    run.update_once = dying
