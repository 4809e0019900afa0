"""The complete state of a run on disk: written atomically, the last few kept, bit-identical when resumed."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from bakeoff.algorithm.loss import Betas
from bakeoff.device import HOST
from bakeoff.learner.learner import Counters, Learner


def save_checkpoint(folder: Path, learner: Learner, run: dict[str, Any], keep: int) -> Path:
    """Writes folder/update_<n>, then removes all but the last `keep`; returns what it wrote.

    `run` identifies the run to its caller: the configuration, the seed, the MLflow run. Every random draw is a function
    of seed and update, so the counters are also the state of the random generators and of the prompt stream.
    """
    target = folder / f"update_{learner.counters.updates:06d}"
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    states = {name: optimizer.state_dict() for name, optimizer in learner.optimizers().items()}
    groups = {name: state["param_groups"] for name, state in states.items()}
    saved = learner.trained() | {
        name: {f"{i}/{key}": v for i, values in state["state"].items() for key, v in values.items()}
        for name, state in states.items()
    }
    for name, tensors in saved.items():  # copied to the host one model at a time
        copies = {key: tensor.detach().to(HOST, copy=True).contiguous() for key, tensor in tensors.items()}
        save_file(copies, partial / f"{name}.safetensors")
    state = {"run": run, "counters": asdict(learner.counters), "betas": asdict(learner.betas), "groups": groups}
    (partial / "state.json").write_text(json.dumps(state, indent=1))
    for path in [*partial.iterdir(), partial]:
        _fsync(path)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    _fsync(folder)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("update_*") if (path / "state.json").is_file())


def read_run(checkpoint: Path) -> dict[str, Any]:
    """The `run` that `save_checkpoint` was given."""
    run: dict[str, Any] = json.loads((checkpoint / "state.json").read_text())["run"]
    return run


def load_checkpoint(checkpoint: Path, learner: Learner) -> Learner:
    """The learner, of the same configuration and start, with weights, optimiser state, counters and β as saved."""
    state = json.loads((checkpoint / "state.json").read_text())
    for name, weights in learner.trained().items():
        saved = load_file(checkpoint / f"{name}.safetensors")
        for key, tensor in weights.items():
            tensor.detach().copy_(saved[key])
    for name, optimizer in learner.optimizers().items():
        values: dict[int, dict[str, Tensor]] = {}
        for key, tensor in load_file(checkpoint / f"{name}.safetensors").items():
            index, field = key.split("/", 1)
            values.setdefault(int(index), {})[field] = tensor
        optimizer.load_state_dict({"state": values, "param_groups": state["groups"][name]})
    return replace(learner, counters=Counters(**state["counters"]), betas=Betas(**state["betas"]))


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
