"""The complete state of a run on disk: written atomically, the last few kept, bit-identical when resumed.

`state.json` holds the SHA-256 of every file beside it and of itself, so that a damaged checkpoint is never loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from bakeoff import processes
from bakeoff.algorithm.loss import Betas
from bakeoff.device import HOST
from bakeoff.files import checksum, set_aside
from bakeoff.learner.learner import Counters, Learner
from bakeoff.learner.masters import round_into_weights
from bakeoff.learner.sharding import in_parts

STATE = "state.json"


def save_checkpoint(folder: Path, learner: Learner, run: dict[str, Any], keep: int) -> Path:
    """Writes folder/update_<n>, then removes all but the last `keep`; returns what it wrote.

    Of several processes each gives its parts of the weights, and the leader writes them whole.

    `run` identifies the run to its caller: what it trains, and its start. Every random draw is a function of seed and
    update, so the counters are also the state of the random generators and of the prompt stream.
    """
    target = folder / f"update_{learner.counters.updates:06d}"
    partial = target.with_name(f".{target.name}.partial")
    if processes.leads():
        for left in folder.glob(".update_*.partial"):  # by a kill or a full disk, whose space it takes
            shutil.rmtree(left, ignore_errors=True)
        partial.mkdir(parents=True)
    states = {name: optimizer.state_dict() for name, optimizer in learner.optimizers().items()}
    groups = {name: state["param_groups"] for name, state in states.items()}
    saved = learner.trained() | {
        name: {f"{i}/{key}": v for i, values in state["state"].items() for key, v in values.items()}
        for name, state in states.items()
    }
    fault: Exception | None = None
    for name, tensors in saved.items():  # copied to the host one model at a time
        copies = {key: processes.whole(x.detach()).to(HOST, copy=True).contiguous() for key, x in tensors.items()}
        if processes.leads() and fault is None:
            try:
                save_file(copies, partial / f"{name}.safetensors")
            except Exception as error:  # raised when every process has given its parts
                fault = error
    if fault is not None:
        raise fault
    if not processes.leads():
        return target
    state = {"run": run, "counters": asdict(learner.counters), "betas": asdict(learner.betas), "groups": groups}
    state["files"] = {path.name: checksum(path) for path in sorted(partial.iterdir())}
    (partial / STATE).write_text(sealed(state))
    for path in [*partial.iterdir(), partial]:
        _fsync(path)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    _fsync(folder)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """Everything that has a checkpoint's name, the lowest update first; what is in it may be damaged."""
    found = [path for path in folder.glob("update_*") if re.fullmatch(r"update_\d+", path.name)]
    return sorted(found, key=update_of)


def update_of(checkpoint: Path) -> int:
    """The number of finished updates that a checkpoint's name says."""
    return int(checkpoint.name.removeprefix("update_"))


def newest_whole(folder: Path, report: Callable[[str], None]) -> Path | None:
    """The newest checkpoint without damage, none if there is none; each damaged one is renamed and reported.

    Raises UserError where a damaged one cannot be renamed.
    """
    for path in reversed(checkpoints(folder)):
        damage = damage_of(path)
        if not damage:
            return path
        report(f"the checkpoint {path} is damaged ({damage}); it is kept as {set_aside(path, 'damaged').name}")
    return None


def damage_of(checkpoint: Path) -> str:
    """Why a checkpoint cannot be loaded, empty for a whole one. Files that it does not name are no part of it."""
    try:
        text = (checkpoint / STATE).read_text()
        state = json.loads(text)
        if sealed({key: value for key, value in state.items() if key != "checksum"}) != text:
            return f"{STATE} was changed"
        if state["counters"]["updates"] != update_of(checkpoint):
            return f"it is of update {state['counters']['updates']}"
        changed = [name for name, sum_ in state["files"].items() if checksum(checkpoint / name) != sum_]
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        return str(error).splitlines()[0] if isinstance(error, OSError) else f"{STATE} cannot be read"
    return f"{changed[0]} was changed" if changed else ""


def sealed(state: dict[str, Any]) -> str:
    """The state as JSON that ends with its own SHA-256."""
    return json.dumps(state | {"checksum": hashlib.sha256(json.dumps(state).encode()).hexdigest()}, indent=1)


def read_run(checkpoint: Path) -> dict[str, Any]:
    """The `run` that `save_checkpoint` was given."""
    run: dict[str, Any] = json.loads((checkpoint / STATE).read_text())["run"]
    return run


def load_checkpoint(checkpoint: Path, learner: Learner) -> Learner:
    """The learner, of the same configuration and start, with weights, optimiser state, counters and β as saved."""
    state = json.loads((checkpoint / STATE).read_text())
    for name, weights in learner.trained().items():
        saved = load_file(checkpoint / f"{name}.safetensors")
        for key, tensor in weights.items():
            tensor.detach().copy_(in_parts(saved[key], tensor))
    round_into_weights(learner.masters)
    for name, optimizer in learner.optimizers().items():
        values: dict[int, dict[str, Tensor]] = {}
        for key, tensor in load_file(checkpoint / f"{name}.safetensors").items():
            index, field = key.split("/", 1)
            values.setdefault(int(index), {})[field] = tensor
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        held = {n: {k: in_parts(v, parameters[n]) for k, v in each.items()} for n, each in values.items()}
        optimizer.load_state_dict({"state": held, "param_groups": state["groups"][name]})
    return replace(learner, counters=Counters(**state["counters"]), betas=Betas(**state["betas"]))


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
