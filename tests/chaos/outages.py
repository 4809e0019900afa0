"""Stores that are locked, deleted or away while a run trains: nothing that was logged is lost."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from mlflow import MlflowClient

from tests.chaos.trials import RUN, Attack, Result, equal, finished, place, undisturbed_run, waiting
from tests.commands import PATIENCE_S


def ends(result: Result, unsent: bool) -> None:
    """Asserts that a run has finished, and said how to send what is unsent if anything is."""
    assert result.returncode == 0, f"exit code {result.returncode}: {result.stderr[-1500:]}"
    assert ("resume=" in result.stderr) == unsent, f"unsent: {unsent}, but it said {result.stderr[-1500:]!r}"


@contextmanager
def locked(cwd: Path) -> Iterator[None]:
    """Another process holds the database while the context is open."""
    other = sqlite3.connect(cwd / "mlflow.db")
    other.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        other.rollback()
        other.close()


def lock_of_a_minute(cwd: Path, undisturbed: Path, seconds: float = 60) -> None:
    with waiting(place(cwd), *RUN, updates=(3, 5)) as run:
        with locked(cwd):
            run.go(3)
            began = time.monotonic()
            run.reaches(5)
            time.sleep(max(0.0, seconds - (time.monotonic() - began)))
        run.go(5)
        ends(run.end(), unsent=False)
    equal(cwd, undisturbed)


def lock_beyond_the_end(cwd: Path, undisturbed: Path) -> None:
    with waiting(place(cwd), *RUN) as run, locked(cwd):
        run.go(3)
        ends(run.end(), unsent=True)
    finished(cwd, "resume=out")
    equal(cwd, undisturbed)


def spoiled(spoil: Callable[[Path], object], cwd: Path, undisturbed: Path) -> None:
    """The store is spoiled in mid-run, and what it lacks is sent by `resume=`."""
    with waiting(place(cwd), *RUN) as run:
        spoil(cwd)
        run.go(3)
        ends(run.end(), unsent=True)
    finished(cwd, "resume=out")
    equal(cwd, undisturbed)


def delete(cwd: Path) -> None:
    (cwd / "mlflow.db").unlink()


def replace_by_an_empty_one(cwd: Path) -> None:
    (place(cwd / "new") / "mlflow.db").replace(cwd / "mlflow.db")


def free_port() -> int:
    """A port that nobody listens to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(cwd: Path, port: int) -> Iterator[None]:
    """An MLflow server on the store of a folder, while the context is open."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    stores = ["--backend-store-uri", f"sqlite:///{cwd}/mlflow.db", "--artifacts-destination", f"{cwd}/artifacts"]
    with (cwd / "server.log").open("a") as log:
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # ten processes that runs do not use
        process = subprocess.Popen(
            [*command, *stores], cwd=cwd, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not answers(port):
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.2)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def address(port: int) -> str:
    """The server's address, with a password that a run's folder leaves out."""
    return f"http://me:secret@127.0.0.1:{port}"


def with_store(uri: str) -> None:
    """Names the process's store, as a user does whose address has a password."""
    os.environ["MLFLOW_TRACKING_URI"] = uri


def answers(port: int) -> bool:
    """Whether a server listens."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def restarted_server(cwd: Path, undisturbed: Path) -> None:
    port = free_port()
    with ExitStack() as first:
        first.enter_context(server(place(cwd), port))
        with waiting(cwd, *RUN, f"tracking.uri={address(port)}", updates=(3, 5)) as run:
            first.close()
            run.go(3)
            run.reaches(5)
            with server(cwd, port):
                run.go(5)
                ends(run.end(), unsent=False)
                equal_on(port, undisturbed)


def absent_server(cwd: Path, undisturbed: Path) -> None:
    port = free_port()
    with ExitStack() as first:
        first.enter_context(server(place(cwd), port))
        with waiting(cwd, *RUN, f"tracking.uri={address(port)}") as run:
            first.close()
            run.go(3)
            ended = run.end()
            ends(ended, unsent=True)
            assert "MLFLOW_TRACKING_URI=ADDRESS bakeoff resume=" in ended.stderr, ended.stderr
    with server(cwd, port):
        finished(cwd, "resume=out", before=[partial(with_store, address(port))])
        equal_on(port, undisturbed)


def equal_on(port: int, undisturbed: Path) -> None:
    """Asserts that the server has the curves of the undisturbed run."""
    equal(MlflowClient(tracking_uri=f"http://127.0.0.1:{port}"), undisturbed)


@contextmanager
def postgres() -> Iterator[tuple[str, Callable[[str], None]]]:
    """A cluster of PostgreSQL while the context is open: its address, and what starts and stops it."""
    port, user = free_port(), {"user": "postgres"} if os.getuid() == 0 else {}  # it refuses to run as root
    folder = tempfile.mkdtemp(dir="/tmp")
    if user:
        shutil.chown(folder, **user)

    def control(*words: str) -> None:
        subprocess.run(
            [str(POSTGRES / words[0]), "-D", f"{folder}/data", *words[1:]], cwd=folder, check=True, **HUSH, **user
        )

    def server(action: str) -> None:
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        control("pg_ctl", "-w", "-m", "fast", "-l", f"{folder}/log", "-o", options, action)

    control("initdb", "-U", "me", "-A", "trust")
    server("start")
    try:
        yield f"postgresql://me:secret@127.0.0.1:{port}/postgres", server
    finally:
        server("restart")  # it may be stopped
        server("stop")
        shutil.rmtree(folder)


def restarted_postgres(cwd: Path, undisturbed: Path, back: bool = True) -> None:
    """PostgreSQL stops in update 3, and starts again in update 5 or when the run has ended."""
    with postgres() as (uri, server):
        with waiting(place(cwd), *RUN, f"tracking.uri={uri}", updates=(3, 5)) as run:
            server("stop")
            run.go(3)
            run.reaches(5)
            if back:
                server("start")
            run.go(5)
            ends(run.end(), unsent=not back)
        if not back:
            server("start")
            finished(cwd, "resume=out", before=[partial(with_store, uri)])
        equal(MlflowClient(tracking_uri=uri), undisturbed)


FOUND = [*sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")), shutil.which("initdb")]
POSTGRES = Path(next(filter(None, reversed(FOUND)), "")).parent
HUSH = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
KINDS = {
    "SQLite locked for a minute": lock_of_a_minute,
    "SQLite locked until the run has ended": lock_beyond_the_end,
    "SQLite's file deleted": partial(spoiled, delete),
    "SQLite's file replaced by an empty store": partial(spoiled, replace_by_an_empty_one),
    "an MLflow server stopped and started again": restarted_server,
    "an MLflow server stopped until the run has ended": absent_server,
}
if any(FOUND) and importlib.util.find_spec("psycopg"):
    KINDS |= {
        "PostgreSQL stopped and started again": restarted_postgres,
        "PostgreSQL stopped until the run has ended": partial(restarted_postgres, back=False),
    }


def attacks(folder: Path) -> list[Attack]:
    """Each kind of outage."""
    undisturbed_run(folder)
    return [
        Attack(kind, "in update 3", partial(attack, folder / f"outage{number}", folder / "run"))
        for number, (kind, attack) in enumerate(KINDS.items())
    ]
