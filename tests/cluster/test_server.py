"""Eight writers at once on `mlflow server` with PostgreSQL behind it, by `make server-test`: nothing is lost."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from mlflow import MlflowClient

from bakeoff.mlflow_store import Tracking, metric_history
from bakeoff.tracking import start_run

pytestmark = pytest.mark.cluster
WRITERS, STEPS = 8, 50


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@pytest.fixture
def postgresql() -> Iterator[str]:
    """The address of an empty database of a PostgreSQL that listens on a socket in a folder of its own alone."""
    programs = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
    if programs is None:
        pytest.skip("it needs PostgreSQL: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="bakeoff-pg-"))
    user = "postgres" if os.getuid() == 0 else None
    if user:
        shutil.chown(folder, user)

    def run(name: str, *arguments: str) -> None:
        subprocess.run([programs / name, *arguments], user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL)

    data = ("-D", str(folder / "data"))
    run("initdb", *data, "-U", "bakeoff", "-A", "trust")
    run("pg_ctl", *data, "-w", "-l", str(folder / "log"), "-o", f"-k {folder} -c listen_addresses=''", "start")
    try:
        run("createdb", "-h", str(folder), "-U", "bakeoff", "bakeoff")
        yield f"postgresql://bakeoff@/bakeoff?host={folder}"
    finally:
        run("pg_ctl", *data, "-m", "fast", "-w", "stop")
        shutil.rmtree(folder)


@pytest.fixture
def server(postgresql, tmp_path) -> Iterator[str]:
    """The address of an MLflow server on loopback."""
    address = f"http://127.0.0.1:{(port := free_port())}"
    store = ("--backend-store-uri", postgresql, "--artifacts-destination", str(tmp_path / "artifacts"))
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen([*command, *store], stdout=log, stderr=log)
    try:
        for _ in range(600):
            with suppress(OSError), urllib.request.urlopen(f"{address}/health"):
                break
            assert process.poll() is None, (tmp_path / "server.log").read_text()[-3000:]
            time.sleep(1)
        yield address
    finally:
        process.terminate()
        process.wait()


def write(address: str, folder: Path, number: int) -> None:
    """Logs a run of some updates, as a job does."""
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "120"  # a busy machine is no fault of the server
    folder.mkdir()
    tracker = start_run(Tracking(uri=address), f"run {number}", {"writer": str(number)}, folder)
    with tracker.running():
        tracker.params({"seed": number})
        for step in range(STEPS):
            tracker.metrics({"reward/mean": number + step, "kl/reference": -float(step)}, step)
            tracker.flush()
            if step % 25 == 0:
                tracker.table([{"update": step, "text": f"{number}"}], "completions.json")


def test_eight_writers_lose_nothing(server, tmp_path):
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=write, args=(server, tmp_path / str(n), n)) for n in range(WRITERS)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    client = MlflowClient(server)
    runs = client.search_runs([client.get_experiment_by_name("bakeoff").experiment_id])
    assert len(runs) == WRITERS
    for run in runs:
        number = int(run.data.tags["writer"])
        held = metric_history(client, run).to_pandas()
        rewards = held[held["metric"] == "reward/mean"]
        assert run.info.status == "FINISHED"
        assert run.data.params["seed"] == str(number)
        assert list(rewards["step"]) == list(range(STEPS))
        assert list(rewards["value"]) == [number + step for step in range(STEPS)]
        assert len(held) == 2 * STEPS
        assert "completions.json" in [file.path for file in client.list_artifacts(run.info.run_id)]
