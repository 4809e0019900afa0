"""Fixtures that most tests share: composed configurations, a tiny policy, and a cache of their own."""

from __future__ import annotations

import functools
import gc
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import settings
from omegaconf import DictConfig, OmegaConf

from bakeoff import validation
from bakeoff.config import Config, register
from bakeoff.errors import refused
from bakeoff.loop import Loop, update_once
from bakeoff.metrics import update_metrics
from bakeoff.model.build import build
from bakeoff.model.policy import Policy
from bakeoff.paths import CONF
from bakeoff.progress import RunProgress
from bakeoff.report.__main__ import main as bakeoff_report
from bakeoff.run import Run
from bakeoff.start import prepare, start
from tests.commands import call

register()
settings.register_profile("fuzz")  # of `make fuzz`; tests/test_ranges.py reads its name
settings.register_profile("tests", deadline=None)  # a busy machine is no fault of the code
settings.load_profile("tests")
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of the commands that tests run: the tests themselves fill the cores
os.environ["HF_HUB_OFFLINE"] = "1"  # read on import; where there is no network, asking the hub takes a minute
os.environ["COLUMNS"] = "160"
os.environ.pop("MLFLOW_TRACKING_URI", None)
gc.set_threshold(20_000, 20, 20)  # with the default, a tenth of the time goes into looking for garbage


MEMORY, ROOM = Path("/dev/shm"), 8e9  # a file system in memory, and the bytes that it must have free


def pytest_configure() -> None:
    """Keeps the folders of tests in memory: a store waits for the disk at every write. TMPDIR keeps them elsewhere."""
    if "TMPDIR" not in os.environ and MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM:
        folder = tempfile.mkdtemp(prefix="bakeoff-tests-", dir=MEMORY)
        os.environ["TMPDIR"] = tempfile.tempdir = folder  # of the workers too, which start later
        # after multiprocessing has removed its own folder there, which has the priority -100
        Finalize(None, shutil.rmtree, (folder,), {"ignore_errors": True}, exitpriority=-200)


def pytest_collection_finish() -> None:
    """Takes what the libraries made, a million objects, out of the collector's sight."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of supervised starts for the whole session and all its processes, away from the user's."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    os.environ["BAKEOFF_CACHE"] = str(folder)
    return folder


@pytest.fixture(autouse=True)
def own_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder of a user's studies, and none left behind by a command in this process: `--config-dir` sets it."""
    monkeypatch.setenv("BAKEOFF_STUDIES", "")
    monkeypatch.delenv("BAKEOFF_STUDIES")


DEFAULTS = OmegaConf.load(CONF / "config.yaml").defaults
GROUPS = {str(key).removeprefix("optional ") for line in DEFAULTS if isinstance(line, DictConfig) for key in line}


def compose(*overrides: str) -> Config:
    """The checked configuration of a command line, the caller's own."""
    return deepcopy(composed(overrides))


@functools.cache
def composed(overrides: tuple[str, ...]) -> Config:
    """Composed once, since that takes longer than most tests; values are set in a copy of what the choices give.

    tests/test_config.py composes as a command does, and compares.
    """
    choices = [each for each in overrides if is_choice(each.partition("=")[0])]
    values = [each for each in overrides if each not in choices]
    if len({each.partition("=")[0] for each in choices}) == len(choices):
        choices.sort()
    cfg = deepcopy(chosen(tuple(choices)))
    with refused():
        ConfigLoaderImpl._apply_overrides_to_config(OverridesParser.create().parse_overrides(values), cfg)
    return validation.to_config(cfg)


def is_choice(key: str) -> bool:
    """Whether an override of this key chooses a file; a dotted key, and one that is no group, has a value."""
    return key.startswith("hydra.") or ("." not in key and (key.lstrip("+~") in GROUPS or "/" in key))


@functools.cache
def chosen(choices: tuple[str, ...]) -> DictConfig:
    """What Hydra composes of choices of groups."""
    GlobalHydra.instance().clear()
    with refused(), hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("config", overrides=list(choices))


@pytest.fixture(scope="session")
def tiny() -> Policy:
    """The tiny model with random weights; tests do not train it."""
    policy = build(compose().model, seed=3)
    policy.network.eval()
    return policy


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `bakeoff …` in an empty folder, in a process of its own; `module` names another command."""

    def run(*arguments: str, module: str = "bakeoff.__main__") -> subprocess.CompletedProcess[str]:
        return call(module, arguments, tmp_path)

    return run


@pytest.fixture
def report(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `bakeoff-report …` in that folder, but in this process, which has imported everything already."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(tmp_path)
        if "MLFLOW_TRACKING_URI" not in os.environ:  # MLflow keeps a store by its name: a relative one has many folders
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
        monkeypatch.setattr(sys, "argv", ["bakeoff-report", *arguments])
        code: Any = 0
        try:
            bakeoff_report()
        except SystemExit as ended:
            code = ended.code
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    return run


class Noted:
    """Stands in for a Tracker: keeps the metrics that it receives."""

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []

    def metrics(self, values: dict[str, float], step: int) -> None:
        self.logged.append(values)

    def table(self, rows: list[dict[str, Any]], name: str) -> None:
        pass

    def page(self) -> str:
        return "nowhere"


def loop_of(config: Config) -> Loop:
    """The loop of a configuration, started as the command starts it."""
    return start(config, prepare(config))


def update_of(loop: Loop, traced: bool = False) -> dict[str, float]:
    """The metrics of the loop's next update, and if it is traced, which takes as long again, those of memory."""
    with loop.traced() if traced else nullcontext():
        update = update_once(loop)
    return update_metrics(update, loop.learner.counters)


def run_of(config: Config, folder: Path) -> Run:
    """A run that reports to memory."""
    tracker, progress = Noted(), RunProgress(folder, "test", quiet=True)
    return Run(config, folder, loop_of(config), tracker, progress, identity={}, signals=[])  # type: ignore[arg-type]


def known(metric: str, pattern: str) -> bool:
    """Whether the metric matches a name of docs/metrics.md, in which `*` stands for anything."""
    head, star, tail = pattern.partition("*")
    return metric.startswith(head) and metric.endswith(tail) if star else metric == pattern
