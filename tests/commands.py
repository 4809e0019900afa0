"""Commands as a user types them, each in its own process.

The processes are forked from one that has imported everything, so they start at once.
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

import bakeoff.__main__  # noqa: F401  it sets variables of the environment, which the commands inherit
from bakeoff.mlflow_store import make_database

PATIENCE_S = 1200  # a process that takes longer hangs; a command on a busy machine takes minutes
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["bakeoff.__main__", "tests.warm"])


def start(
    module: str, arguments: tuple[str, ...], cwd: Path, output: Path, *before: Callable[[], None]
) -> multiprocessing.context.ForkServerProcess:
    """Starts a command in `cwd`, with output in the folder `output`; its process first calls the functions `before`."""
    process = SERVER.Process(target=perform, args=(module, arguments, cwd, dict(os.environ), output, before))
    process.start()
    return process


def perform(
    module: str,
    arguments: tuple[str, ...],
    cwd: Path,
    environment: dict[str, str],
    output: Path,
    before: tuple[Callable[[], None], ...],
) -> None:
    """Runs the console script of the command in this process."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(output / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = [module, *arguments]
    for function in before:
        function()
    try:
        import_module(module).main()
    finally:  # an interpreter's end, which ends a launcher's processes; a fork skips it
        threading._shutdown()
        atexit._run_exitfuncs()


def call(
    module: str, arguments: tuple[str, ...], cwd: Path, *before: Callable[[], None]
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, in a folder that gets a store if it has none; returns its exit code and output."""
    store_of(cwd)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder)
        process = start(module, arguments, cwd, output, *before)
        process.join(PATIENCE_S)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"{module} {' '.join(arguments)} has not ended after {PATIENCE_S} s")
        texts = [(output / name).read_text() for name in ("stdout", "stderr")]
        return subprocess.CompletedProcess(arguments, process.exitcode, *texts)


def store_of(folder: Path) -> Path:
    """The store of a folder, which is made if it lacks: a copy, because MLflow takes two seconds to make its tables."""
    path = folder / "mlflow.db"
    if not path.exists():
        shutil.copy(empty_store(), path)
    return path


@cache
def empty_store() -> Path:
    """A store with tables and no runs, made once per test process."""
    path = Path(tempfile.mkdtemp()) / "mlflow.db"
    make_database(path)
    return path


def dies_in_update(number: int) -> None:
    """Makes the process kill itself at the start of update `number`, counted from 1."""
    changed_update(number, lambda: os.kill(os.getpid(), signal.SIGKILL))


def changed_update(number: int, first: Callable[[], None]) -> None:
    """Makes the process call a function at the start of update `number`, counted from 1."""
    run = import_module("bakeoff.run")
    update_once = run.update_once

    def changed(loop: Any, progress: float) -> Any:
        if loop.learner.counters.updates == number - 1:
            first()
        return update_once(loop, progress)

    run.update_once = changed
