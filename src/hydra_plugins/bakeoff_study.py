"""Hydra's door to `bakeoff.sweep`: Hydra finds a sweeper only as a class of this namespace package.

Every Hydra application imports this file where bakeoff is installed, so bakeoff itself is imported when a sweep starts.
Hydra executes it before it is in sys.modules, so annotations are no strings: dataclasses would look them up there.
"""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


@dataclass
class StudyConfig:
    """What a sweep runs.

    arms     overrides by the name of the arm; `arm=a,b` selects some of them
    params   values by key, as for Hydra's own sweeper; every arm runs with every combination of them
    search   a sweeper that chooses values itself, such as Optuna's, in the place of arms and params
    """

    _target_: str = "hydra_plugins.bakeoff_study.StudySweeper"
    _recursive_: bool = False
    arms: dict[str, list[str]] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    search: Any = None


ConfigStore.instance().store(group="hydra/sweeper", name="study", node=StudyConfig, provider="bakeoff")


class StudySweeper(Sweeper):
    """Runs the jobs of a study below one MLflow run."""

    config: DictConfig
    hydra_context: HydraContext

    def __init__(self, **values: Any) -> None:
        """Hydra passes the values resolved; `sweep` reads them unresolved, because an arm may say `${model}`."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.hydra_context = config, hydra_context
        plugins = Plugins.instance()
        search = config.hydra.sweeper.search
        if search:
            str(config.hydra.sweep.dir)  # draws the token in its name, which the copy then shares
            alone = config.copy()
            alone.hydra.sweeper = search
            OmegaConf.copy_cache(from_config=config, to_config=alone)
            self.inner = plugins.instantiate_sweeper(
                hydra_context=hydra_context, task_function=task_function, config=alone
            )
        else:
            self.launcher = plugins.instantiate_launcher(
                hydra_context=hydra_context, task_function=task_function, config=config
            )

    def sweep(self, arguments: list[str]) -> Any:
        from bakeoff.arms import jobs_of
        from bakeoff.sweep import run_sweep

        loader = self.hydra_context.config_loader
        jobs = jobs_of(self.config, arguments, loader)
        if self.config.hydra.sweeper.search:
            return run_sweep(self.config, loader, jobs, lambda _: self.inner.sweep(arguments))
        launcher = self.launcher
        assert launcher is not None
        return run_sweep(self.config, loader, jobs, lambda each: launcher.launch(each, initial_job_idx=0))
