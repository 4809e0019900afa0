"""A study in the queue of a real Slurm, by `make slurm-test`: whatever happens to its jobs, its curves are the same."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from tests.cluster.slurm import NODES, Cluster, cluster
from tests.cluster.study import PATIENCE, STUDY, begun, done, progress, running, same_report, until

pytestmark = pytest.mark.cluster
SLURM = ("hydra/launcher=slurm", "hydra.launcher.one_machine=true", "hydra.launcher.minutes=20")


@pytest.fixture(scope="module")
def slurm():
    with cluster() as here:
        yield here


def job_in(here: Cluster, folder: Path) -> str:
    """The id of the job in the queue that runs in a folder of a sweep."""
    task = folder.name
    found = re.findall(rf"^(\d+_{task})\b", here.call("squeue", "-h", "-r", "-o", "%i"), re.MULTILINE)
    return found[0]


def node_of(here: Cluster, job: str) -> str:
    return here.call("squeue", "-h", "-j", job, "-o", "%N").strip()


def test_a_preempted_job_and_those_of_a_dead_machine_go_on(slurm, undisturbed, tmp_path):
    command = begun(tmp_path, "bakeoff", *STUDY, *SLURM)
    folder = until(lambda: running(tmp_path), command)[0]
    slurm.call("scontrol", "requeue", job := job_in(slurm, folder))
    other = until(lambda: [each for each in running(tmp_path) if each != folder], command)[0]
    node = node_of(slurm, job_in(slurm, other))
    assert node in NODES
    slurm.kill_node(node)
    until(lambda: "down" in slurm.call("sinfo", "-h", "-N", "-n", node, "-o", "%T"), command)
    slurm.start_node(node)
    assert command.wait(PATIENCE) == 0, (tmp_path / "stderr").read_text()
    states = [progress(each)["state"] for each in sorted((tmp_path / "out").glob("[0-9]*"))]
    assert states == ["done"] * 6
    assert "Bypassing" not in (tmp_path / "stderr").read_text()
    log = (tmp_path / "out" / ".submitit" / job / f"{job}_0_log.out").read_text()
    assert log.count("Loading pickle") == 2, "it ran twice"
    same_report(tmp_path, undisturbed)


def test_a_job_that_a_partition_of_higher_priority_preempts_saves_its_state_and_goes_on(slurm, undisturbed, tmp_path):
    command = begun(tmp_path, "bakeoff", *STUDY, *SLURM)
    folder = until(lambda: running(tmp_path), command)[0]
    before = progress(folder)["update"]
    node = node_of(slurm, job := job_in(slurm, folder))
    slurm.call("sbatch", "--partition=urgent", f"--nodelist={node}", "--output=/dev/null", "--wrap=sleep 5")
    until(lambda: "RUNNING" not in slurm.call("squeue", "-h", "-j", job, "-o", "%T"), command)
    saved = sorted((folder / "checkpoints").iterdir())
    assert saved
    assert progress(folder)["update"] >= before
    assert command.wait(PATIENCE) == 0, (tmp_path / "stderr").read_text()
    same_report(tmp_path, undisturbed)


def test_jobs_outlive_the_command_which_finds_them_again(slurm, undisturbed, tmp_path):
    command = begun(tmp_path, "bakeoff", *STUDY, *SLURM)
    until(lambda: running(tmp_path), command)
    command.kill()
    command.wait()
    waiting = slurm.call("squeue", "-h", "-r", "-o", "%i").split()
    assert len(waiting) >= 4
    command = begun(tmp_path, "bakeoff", *STUDY, *SLURM)
    until(lambda: "jobs, results in" in (tmp_path / "stdout").read_text(), command)
    assert command.wait(PATIENCE) == 0, (tmp_path / "stderr").read_text()
    logs = list((tmp_path / "out" / ".submitit").glob("*/*_log.out"))
    assert len(logs) == 6, "no job was queued twice"
    same_report(tmp_path, undisturbed)


def test_an_interrupt_cancels_the_jobs(slurm, undisturbed, tmp_path):
    command = begun(tmp_path, "bakeoff", *STUDY, *SLURM)
    until(lambda: running(tmp_path), command)
    command.send_signal(signal.SIGINT)
    assert command.wait(120) == 130
    assert slurm.call("squeue", "-h").strip() == ""
    assert "To finish the sweep, type: bakeoff -m" in (tmp_path / "stderr").read_text()
    done(tmp_path, "bakeoff", *STUDY, *SLURM)
    same_report(tmp_path, undisturbed)
