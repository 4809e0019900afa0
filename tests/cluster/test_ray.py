"""A study on a real Ray cluster, by `make ray-test`: whatever happens to its jobs, its curves are the same.

Ray listens on every interface, so the target gives the test a network of its own, which has loopback alone.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cluster.study import (
    PATIENCE,
    STUDY,
    begun,
    descendants,
    process_of,
    progress,
    running,
    same_report,
    until,
)

pytestmark = pytest.mark.cluster
ADDRESS = "127.0.0.1:6399"
RAY = ("hydra/launcher=ray", f"hydra.launcher.address={ADDRESS}", "hydra.launcher.one_machine=true")


def node(*arguments: str) -> subprocess.Popen[bytes]:
    """A machine of the cluster, with one processor."""
    common = ("--node-ip-address=127.0.0.1", "--num-cpus=1", "--num-gpus=0", "--block", "--disable-usage-stats")
    command = [Path(sys.executable).parent / "ray", "start", *common, *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def listens(port: int) -> bool:
    """Whether something answers at a port of this machine."""
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def end(machine: subprocess.Popen[bytes]) -> None:
    """Kills everything that runs on a machine, as one that loses its power."""
    for pid in [machine.pid, *descendants(machine.pid)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    machine.wait()


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The machines of a cluster: its head and another, which share a token."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    folder = tempfile.mkdtemp(prefix="ray-")
    port = ADDRESS.partition(":")[2]
    machines = [node("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}")]
    try:
        until(lambda: listens(int(port)), machines[0])
        machines.append(node(f"--address={ADDRESS}"))
        yield machines
    finally:
        for machine in machines:
            if machine.poll() is None:
                end(machine)
        shutil.rmtree(folder, ignore_errors=True)


def test_a_killed_worker_a_preempted_job_and_a_dead_machine_change_no_curve(ray, undisturbed, tmp_path):
    command = begun(tmp_path, "bakeoff", *STUDY, *RAY)
    hit: list[Path] = []  # a job that runs again waits until Ray has started the others
    for number in (signal.SIGKILL, signal.SIGTERM):
        folder = until(lambda: [each for each in running(tmp_path) if each not in hit], command)[0]
        os.kill(process_of(folder), number)
        hit.append(folder)

    def on_other() -> list[Path]:
        there = set(descendants(ray[1].pid))
        return [each for each in running(tmp_path) if each not in hit and process_of(each) in there]

    until(on_other, command)
    end(ray[1])
    assert command.wait(PATIENCE) == 0, (tmp_path / "stderr").read_text()
    assert [progress(each)["state"] for each in sorted((tmp_path / "out").glob("[0-9]*"))] == ["done"] * 6
    same_report(tmp_path, undisturbed)
