"""A Slurm cluster of two nodes on this machine, of Debian's packages, for as long as a test needs it.

It needs root. `python -m tests.cluster.slurm COMMAND` runs a command with it.
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
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

NODES = ("n1", "n2")
CONF = """
ClusterName=bakeoff
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool_%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd_%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd_%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,requeue_delay=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=30
SlurmdTimeout=10
ReturnToService=2
{nodes}
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=60 PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=n1,n2 MaxTime=60 PriorityTier=10
"""


@dataclass
class Cluster:
    """The folder with everything that the cluster's services write, and their processes by name."""

    folder: Path
    services: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def begin(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as out:
            self.services[name] = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)

    def start_node(self, node: str) -> None:
        self.begin(node, "slurmd", "-D", "-N", node, "-f", str(self.folder / "slurm.conf"))

    def kill_node(self, node: str) -> None:
        """Kills everything that runs on a node, as a machine does that loses its power."""
        self.services[node].kill()
        self.services.pop(node).wait()
        for pid in processes_on(node):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def call(self, *command: str) -> str:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return ran.stdout + ran.stderr


def processes_on(node: str) -> list[int]:
    """The processes of the jobs on a node, and before them those of Slurm that watch over them."""
    jobs, watchers = [], []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"SLURMD_NODENAME={node}".encode() in (process / "environ").read_bytes().split(b"\0"):
                jobs.append(int(process.name))
                parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
                if Path(f"/proc/{parent}/comm").read_text().strip() == "slurmstepd":
                    watchers.append(parent)
    return [*watchers, *jobs]


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Starts munge, slurmctld and a slurmd for each node, on loopback alone; ends them and removes their folder."""
    folder = Path(tempfile.mkdtemp(prefix="bakeoff-slurm-"))
    folder.chmod(0o755)
    for name in ("state", *(f"spool_{node}" for node in NODES)):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(64))
    key.chmod(0o400)
    host, cores = socket.gethostname(), os.cpu_count() or 1
    nodes = "\n".join(
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={17003 + n} CPUs={max(1, cores // 2)}"
        for n, node in enumerate(NODES)
    )
    (folder / "slurm.conf").write_text(CONF.format(folder=folder, host=host, port=17002, nodes=nodes))
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    here = Cluster(folder)
    try:
        files = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "seed", "log")]
        here.begin("munged", "munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *files)
        here.begin("slurmctld", "slurmctld", "-D", "-f", str(folder / "slurm.conf"))
        for node in NODES:
            here.start_node(node)
        for _ in range(60):
            if here.call("sinfo", "-h", "-N", "-t", "idle", "-p", "main", "-o", "%N").split() == list(NODES):
                break
            time.sleep(1)
        else:
            raise RuntimeError(f"the nodes did not come up; see {folder}: {here.call('sinfo')}")
        yield here
    finally:
        here.call("scancel", "--user=root")
        for node in NODES:
            if node in here.services:
                here.kill_node(node)
        for service in here.services.values():
            service.terminate()
            service.wait()
        if not os.environ.get("KEEP"):
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    with cluster():
        sys.exit(subprocess.run(sys.argv[1:]).returncode)
