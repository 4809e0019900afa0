"""Predicted against measured seconds of an update, by phase: the table of docs/memory.md.

It exits with 1 where the sum of an update is off by more than BOUND.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import pandas as pd

from bakeoff.config import register
from bakeoff.cost import cost_of
from bakeoff.device import HOST, choose_device, device_name
from bakeoff.hardware import Hardware
from bakeoff.loop import update_once
from bakeoff.predict import predict
from bakeoff.validation import compose
from benchmarks.calibrate import LARGE, calibrated, clock_of
from benchmarks.start import endless, started, with_device

ONE_TRY = ["algorithm.optimizer.backtracks=1"]  # a trust-region step takes as many as it needs; predicted is the most
METHODS: dict[str, list[str]] = {"grpo": [], "ppo": [], "trpo": ONE_TRY}
SIZES = {"hidden_size": 192, "intermediate_size": 528}  # of three times the width: nine times the parameters
WIDE = [f"++model.architecture.{key}={size}" for key, size in SIZES.items()]
LENGTHS = ["task.digits=7", "task.max_new_tokens=256", "batch.prompts=64", "batch.group_size=8", "micro_tokens=65536"]
BOUND = 0.25  # largest error of a predicted update
ONCE = [f"algorithm.optimizer.{each}=1" for each in ("epochs", "minibatches")]


@dataclass
class Case:
    """A model, its settings, the methods that train it; the fastest of the updates after those that warm up counts."""

    name: str
    settings: list[str]
    methods: list[str]
    updates: int
    warm_up: int


SMALL = [
    Case("tiny", [], [*METHODS], 12, 2),
    Case("tiny, three times as wide", WIDE, [*METHODS], 12, 2),
]
ON_GPU = Case(
    "Qwen2.5-0.5B in bfloat16, 512 completions of 256 tokens", [*LARGE, *LENGTHS, *ONCE], ["grpo", "ppo"], 1, 1
)


def compared(case: Case, method: str, device: str, hardware: Hardware) -> dict[str, tuple[float, float]]:
    """Predicted seconds of each phase, and the fewest measured ones."""
    config = compose([f"algorithm={method}", f"device={device}", *METHODS[method], *case.settings])
    config.hardware = hardware
    predicted = cost_of(config, predict(config)).seconds
    loop = endless(started(config))
    loop.phases.clock = clock_of(loop.phases.device)
    rows = [update_once(loop).measured.seconds for _ in range(case.warm_up + case.updates)][case.warm_up :]
    measured = {phase: min(row[phase] for row in rows) for phase in predicted}
    return {phase: (predicted[phase], measured[phase]) for phase in predicted}


def main() -> None:
    """Prints a table for each model, as Markdown, after a calibration; exit code 1 where an update is off by more."""
    device: str = with_device(argparse.ArgumentParser(description=__doc__)).device
    register()
    chosen = choose_device(device)
    off: list[str] = []
    for case in SMALL if chosen == HOST else [ON_GPU, *SMALL]:
        hardware = calibrated(device, chosen)
        rows = []
        for method in case.methods:
            phases = compared(case, method, device, hardware)
            sums = tuple(map(sum, zip(*phases.values(), strict=True)))
            if abs(sums[0] / sums[1] - 1) > BOUND:
                off.append(f"{method} on {case.name}")
            for phase, (predicted, measured) in (phases | {"**sum**": sums}).items():
                error = f"{predicted / measured - 1:+.0%}"
                cells = {"predicted (ms)": f"{predicted * 1e3:.0f}", "measured (ms)": f"{measured * 1e3:.0f}"}
                rows.append({"method": f"`{method}`", "phase": phase.replace("_", " "), **cells, "error": error})
        rates = f"{hardware.float32_tflops:.3g} and {hardware.bfloat16_tflops:.3g} TFLOP/s in float32 and bfloat16, "
        rates += f"{hardware.bandwidth_gb:.3g} GB/s, efficiency {hardware.efficiency:.2f}, "
        print(f"{case.name} on {device_name(chosen)}: {rates}{hardware.launch_us:.1f} µs an operator\n")
        print(pd.DataFrame(rows).to_markdown(index=False), end="\n\n", flush=True)
    if off:
        raise SystemExit(f"off by more than {BOUND:.0%}: {', '.join(off)}")
    print(f"Every update is predicted within {BOUND:.0%}.")


if __name__ == "__main__":
    main()
