"""Processes of this machine, which never see Ctrl-C, and jobs that have one of its GPUs each."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from joblib import register_parallel_backend
from joblib._parallel_backends import LokyBackend
from joblib.externals.loky.backend import resource_tracker as loky_tracker
from omegaconf import DictConfig

from bakeoff.device import claim_gpu
from bakeoff.progress import RunProgress
from bakeoff.signals import shielding


class Shielded(LokyBackend):  # type: ignore[misc]  # its package has no types
    """joblib's processes, which never see Ctrl-C: the process that starts them ends them."""

    def submit(self, *arguments: Any, **options: Any) -> Any:
        """Queues a call, for which it starts a process where one is missing."""
        for tracker in (resource_tracker, loky_tracker):
            tracker.ensure_running()  # which unblocks the signal where it starts
        with shielding():
            return super().submit(*arguments, **options)


def shield_processes() -> None:
    """Makes joblib, and Hydra's launcher with it, start its processes shielded."""
    register_parallel_backend("loky", Shielded)


def on_gpu(gpus: list[str], function: Callable[[DictConfig], Any], config: DictConfig) -> Any:
    """Runs a job in a process that has a GPU for itself; the job's report says where it waits for one."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    claim_gpu(gpus, lambda message: RunProgress(folder, "", quiet=True).report(message))
    return function(config)
