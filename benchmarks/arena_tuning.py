"""The learning rate of each method in the arena: equal trials for all, on seeds that do not report.

Writes conf/tuned/arena_tiny/METHOD.yaml. All else in it is that of conf/tuned/sort_tiny/METHOD.yaml.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
from collections.abc import Iterable
from pathlib import Path

import joblib
import numpy as np
from omegaconf import OmegaConf

from bakeoff.algorithm.divergence import Diverged
from bakeoff.config import register
from bakeoff.loop import evaluate, update_once
from bakeoff.paths import CONF
from bakeoff.validation import compose
from benchmarks.start import started

RATES = np.geomspace(1e-4, 3e-3, 8)  # learning rates, of adaptive methods
RADII = np.geomspace(1e-3, 3e-2, 8)  # of a trust region, which has no rate
SEEDS = (100, 101, 102)
WIDER = 2  # rates that are added where the best is at an edge


def overrides(method: str) -> list[str]:
    """The plain regime, with the method's values of sort-10."""
    base = f"sort_tiny/{method}" if of_sort(method).exists() else "none"
    return ["regime=plain", "protocol=arena_tiny", f"tuned={base}", f"algorithm={method}"]


def of_sort(method: str) -> Path:
    """The file of the method's values of sort-10, which may be missing."""
    return CONF / "tuned" / "sort_tiny" / f"{method}.yaml"


def key_of(method: str) -> str:
    """The key that is searched: the learning rate, or the radius of a trust region."""
    register()
    whole = compose(overrides(method)).algorithm.optimizer.needs_whole_rollout
    return "algorithm.optimizer.max_kl" if whole else "algorithm.optimizer.lr"


def trial(method: str, key: str, value: float, seed: int) -> float:
    """The final sampled accuracy of a run; 0 where it diverges."""
    register()
    config = compose([*overrides(method), f"{key}={value:.3g}", f"seed={seed}"])
    loop = started(config)
    counters = loop.learner.counters
    try:
        while counters.progress(config.budget) < 1:
            update_once(loop, counters.progress(config.budget))
        return evaluate(loop, config.evaluation.samples, last=True).sampled_accuracy
    except Diverged:
        return 0.0


def trials(method: str, key: str, values: Iterable[float]) -> dict[float, list[float]]:
    """The accuracies of every seed for each value, two runs at a time."""
    values = [float(f"{value:.3g}") for value in values]
    jobs = [joblib.delayed(trial)(method, key, value, seed) for value in values for seed in SEEDS]
    found = list(joblib.Parallel(2)(jobs))
    return {value: found[at * len(SEEDS) : (at + 1) * len(SEEDS)] for at, value in enumerate(values)}


def best(tried: dict[float, list[float]]) -> float:
    """The value with the highest mean accuracy over the seeds."""
    return max(tried, key=lambda value: statistics.mean(tried[value]))


def tune(method: str) -> None:
    """Searches, widens the grid while the best value is at its edge, at most twice, and writes the method's file."""
    key = key_of(method)
    grid = RADII if key.endswith("max_kl") else RATES
    tried, step = trials(method, key, grid), grid[1] / grid[0]
    for _ in range(WIDER):
        chosen = best(tried)
        if chosen not in (min(tried), max(tried)):
            break
        wider = chosen * np.power(step, [-1, -2] if chosen == min(tried) else [1, 2])
        tried |= trials(method, key, wider)
    write(method, key, dict(sorted(tried.items())))


def write(method: str, key: str, tried: dict[float, list[float]]) -> None:
    """The method's file: its values, the search behind them, and what each trial reached."""
    chosen, name = best(tried), f"arena_tiny/{method}"
    base = of_sort(method)
    values = OmegaConf.load(base).algorithm if base.exists() else OmegaConf.create({"optimizer": {}})
    OmegaConf.update(values, key.removeprefix("algorithm."), chosen, force_add=True)
    means = ", ".join(f"{value:.3g}: {statistics.mean(each):.3f}" for value, each in tried.items())
    record = {
        "name": name,
        "command": f"make arena-tuning METHODS={method}",
        "trials": len(tried) * len(SEEDS),
        "seeds": list(SEEDS),
        "accuracies": [round(each, 3) for each in tried[chosen]],
        "date": datetime.date.today().isoformat(),
        "note": f"Mean sampled accuracy by {key}: {means}. The accuracies are those of the chosen value.",
    }
    text = OmegaConf.to_yaml(OmegaConf.create({"tuned": record, "algorithm": values}))
    path = CONF / "tuned" / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"# @package _global_\n# {method}: the arena, tiny model.\n{text}")
    print(f"{name}: {key} {chosen:.3g}, {statistics.mean(tried[chosen]):.3f} ({means})", flush=True)


def main() -> None:
    """Tunes the methods that are named, or every one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*", help="methods; every one if none is named")
    every = sorted(path.stem for path in (CONF / "algorithm").glob("*.yaml"))
    for method in parser.parse_args().methods or every:
        tune(method)


if __name__ == "__main__":
    main()
