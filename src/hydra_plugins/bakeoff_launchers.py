"""Hydra's door to `bakeoff.launcher`: Hydra finds a launcher only as a class of this namespace package.

Their options are in conf/hydra/launcher. Every Hydra application imports this file where bakeoff is installed, so
bakeoff itself is imported when a sweep starts.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.hydra_joblib_launcher.joblib_launcher import JoblibLauncher
from omegaconf import DictConfig, OmegaConf


class PerGpuLauncher(JoblibLauncher):  # type: ignore[misc]  # its package has no types
    """Runs as many jobs at a time as this machine has GPUs, each on one of its own; two where it has none."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from bakeoff.device import visible_gpus
        from bakeoff.launcher.local import on_gpu

        gpus = visible_gpus()
        self.joblib["n_jobs"] = len(gpus) or 2
        function = partial(on_gpu, gpus, task_function) if gpus else task_function
        super().setup(hydra_context=hydra_context, task_function=function, config=config)


class _Elsewhere(Launcher):
    """Runs the jobs in processes that another program starts, perhaps on other machines.

    needs   name of the launcher, and the package that it takes
    """

    needs: tuple[str, str]
    config: DictConfig
    hydra_context: HydraContext
    task_function: TaskFunction

    def __init__(self, one_machine: bool, **options: Any) -> None:
        self.options: Any = OmegaConf.to_container(OmegaConf.create(options), resolve=True)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from bakeoff.launcher.elsewhere import require

        require(*self.needs)
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config


class SlurmLauncher(_Elsewhere):
    """Queues the jobs in Slurm."""

    needs = "slurm", "submitit"

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from bakeoff.launcher.slurm import in_slurm

        return in_slurm(self, job_overrides, initial_job_idx, **self.options)


class RayLauncher(_Elsewhere):
    """Runs the jobs on a Ray cluster."""

    needs = "ray", "ray"

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from bakeoff.launcher.ray import on_ray

        return on_ray(self, job_overrides, initial_job_idx, **self.options)
