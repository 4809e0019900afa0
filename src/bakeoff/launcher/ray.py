"""Jobs on the workers of a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher

from bakeoff.launcher.elsewhere import RemoteJob, folders_of, returned, task_of

INHERITED = ("BAKEOFF_", "MLFLOW_", "HF_", "HYDRA_")  # variables of the environment that Ray's workers get
RAY_TOKEN = Path.home() / ".ray" / "auth_token"


def on_ray(
    launcher: Launcher,
    jobs: Sequence[Sequence[str]],
    first: int,
    address: str,
    gpus: float | None,
    cpus: float,
    memory_gb: float,
    resources: dict[str, float],
    repeats: int,
) -> list[JobReturn]:
    """Runs the jobs on a Ray cluster, of which each worker gets the GPUs that Ray hands out; waits for their ends.

    Ray runs a job again, from its last checkpoint, where its worker or its machine dies.
    """
    if address != "local" and RAY_TOKEN.is_file():  # with which `ray start` then protects a cluster
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    environment = {key: value for key, value in os.environ.items() if key.startswith(INHERITED)}
    folders, lost = folders_of(launcher.config, jobs, first), {}  # type: ignore[attr-defined]
    alone = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"} if address == "local" else {}
    ray.init(address=address, log_to_driver=False, logging_level="error", **alone)
    try:
        shared = ray.put(task_of(launcher, environment))
        gpus = min(1, ray.cluster_resources().get("GPU", 0)) if gpus is None else gpus
        limits = {"num_cpus": cpus, "num_gpus": gpus, "memory": memory_gb * 1e9, "resources": resources}
        run = ray.remote(**limits, max_retries=repeats, max_calls=1)(run_task)
        left = {run.remote(shared, list(job), first + n): folders[n] for n, job in enumerate(jobs)}
        while left:
            for ended in ray.wait(list(left))[0]:
                folder = left.pop(ended)
                try:
                    ray.get(ended)
                except Exception as error:  # of the job, whose report says it, or of Ray
                    lost[folder] = " ".join(str(error).split())[:300]
    finally:
        ray.shutdown()
    return [returned(folder, lost.get(folder, "")) for folder in folders]


def run_task(task: RemoteJob, overrides: list[str], number: int) -> None:
    """Runs one job of a task, which Ray reads from its store."""
    task(overrides, number)
