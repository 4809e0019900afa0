"""Where the jobs of a sweep run: GPUs that are claimed, launchers that are not there, and signals of a queue."""

import multiprocessing
import os
import signal
import socket
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import bakeoff.signals
from bakeoff.device import claim_gpu
from bakeoff.errors import UserError
from bakeoff.launcher.elsewhere import returned
from bakeoff.launcher.slurm import QUEUED, queued_before, sbatch, still_queued
from bakeoff.progress import RunProgress
from bakeoff.signals import termination
from bakeoff.sweep import Parent, elsewhere, refuse_file


def claim(folder: Path, said) -> None:
    os.environ["TMPDIR"] = str(folder)
    claim_gpu(["0", "1"], said.send)
    said.send(os.environ["CUDA_VISIBLE_DEVICES"])
    said.recv()


def test_each_process_claims_a_gpu_of_its_own_until_it_ends(tmp_path):
    """The third of three waits for the end of one of the others, which dies here."""
    spawn = multiprocessing.get_context("forkserver")

    def started():
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=claim, args=(tmp_path, theirs))
        process.start()
        return process, ours

    (first, to_first), (second, to_second) = started(), started()
    claimed = [to_first.recv(), to_second.recv()]
    assert sorted(claimed) == ["0", "1"]
    third, to_third = started()
    assert to_third.recv() == "waiting for a free GPU"
    second.kill()
    assert to_third.recv() == claimed[1]
    for process, pipe in ((first, to_first), (third, to_third)):
        pipe.send("end")
        process.join()
        assert process.exitcode == 0


@pytest.mark.parametrize(
    ("launcher", "package"),
    [("slurm", "submitit"), ("ray", "ray"), ("rq", "hydra-rq-launcher"), ("submitit_slurm", "hydra-submitit-launcher")],
)
def test_a_launcher_that_is_not_installed_says_what_to_install(command, launcher, package):
    if find_spec(package):
        pytest.skip(f"{package} is installed")
    ran = command("-m", "algorithm=grpo,rloo", f"hydra/launcher={launcher}")
    assert ran.returncode == 2
    needs = f"hydra/launcher={launcher} needs {package}, which is not installed; type: pip install {package}"
    assert ran.stderr.strip() == f"bakeoff: {needs}"


def test_a_file_is_no_store_for_jobs_on_several_machines():
    with pytest.raises(UserError, match=r"mlflow server .*MLFLOW_TRACKING_URI.*one_machine=true"):
        refuse_file("sqlite:///mlflow.db")
    refuse_file("http://server:5000")
    refuse_file("postgresql://me@server/runs")
    away = {"one_machine": False}
    for launcher, expected in [
        ({"n_jobs": 2}, False),
        (away, True),
        ({"one_machine": True}, False),
        (away | {"address": "local"}, False),
        (away | {"address": "head:6379"}, True),
    ]:
        assert elsewhere(OmegaConf.create(launcher)) is expected


def test_only_a_child_of_the_launch_ends_with_it():
    """A job in a queue, whose parent may have the same process id on another machine, does not."""
    assert Parent("run", os.getppid(), [], socket.gethostname()).started_this()
    assert not Parent("run", os.getppid(), [], "another").started_this()
    assert not Parent("run", os.getpid(), [], socket.gethostname()).started_this()


def test_a_queue_that_does_not_answer_queues_no_job_again(tmp_path, monkeypatch):
    """Slurm's `squeue` is a program that names one of two jobs, or fails."""
    known = {"0": ("7", ["seed=1"]), "1": ("8", ["seed=2"])}
    program = tmp_path / "squeue"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for body, expected in (("echo 7 PENDING", {"0": ("7", ["seed=1"])}), ("true", {})):
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
        assert still_queued(known, "name") == expected
    program.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(UserError, match="whose queue does not answer"):
        still_queued(known, "name")
    assert still_queued({}, "name") == {}


@pytest.mark.parametrize("text", ["", "{", "\xff"])
def test_a_list_of_queued_jobs_that_cannot_be_read_queues_no_job_again(tmp_path, text):
    assert queued_before(tmp_path) == {}
    (tmp_path / QUEUED).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=f"{QUEUED}', the list of queued jobs, cannot be read"):
        queued_before(tmp_path)


@pytest.fixture
def handled():
    """The signals that a launcher's handlers receive."""
    got: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    for number in before:
        signal.signal(number, lambda number, frame: got.append(number))
    yield got
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_launcher_handles_a_signal_once_the_state_is_saved(handled):
    """Slurm sends SIGTERM twice, and SIGUSR2 before a job's time is over."""
    with termination() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR2)
        assert signals == [signal.SIGTERM, signal.SIGTERM, signal.SIGUSR2]
        assert handled == []
    assert handled == [signal.SIGTERM, signal.SIGUSR2]


def dies(folder: Path) -> None:
    bakeoff.signals.TOGETHER = 0.0
    with termination():
        os.kill(os.getpid(), signal.SIGTERM)
        (folder / "goes_on").touch()
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        (folder / "goes_on_again").touch()


def test_a_second_signal_ends_a_run_at_once(tmp_path):
    process = multiprocessing.get_context("forkserver").Process(target=dies, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGTERM
    assert [path.name for path in tmp_path.iterdir()] == ["goes_on"]


def test_what_a_job_came_to_is_read_from_its_report(tmp_path):
    progress = RunProgress(tmp_path, "job", quiet=True)
    with pytest.raises(UserError, match="the machine died"):
        returned(tmp_path, "the machine died").return_value  # noqa: B018
    progress.report("starting")
    with pytest.raises(UserError, match="the machine died"):
        returned(tmp_path, "the machine died").return_value  # noqa: B018
    progress.keep(result=0.5)
    progress.end("done")
    assert returned(tmp_path, "the machine died").return_value == 0.5
    progress.end("failed", "lr is NaN")
    with pytest.raises(UserError, match="lr is NaN"):
        returned(tmp_path, "the machine died").return_value  # noqa: B018


def test_options_of_slurm_have_the_names_that_submitit_knows():
    given = {"partition": "gpu", "gpus": 2, "cpus": None, "memory_gb": 64, "minutes": 60, "save_s": 120, "at_once": 8}
    assert sbatch(given) == {
        "partition": "gpu",
        "gpus_per_node": 2,
        "mem": "64GB",
        "time": 60,
        "signal_delay_s": 120,
        "array_parallelism": 8,
    }
