"""Predicted against measured seconds of an update, by phase: the table of docs/memory.md."""

from __future__ import annotations

import argparse

import pandas as pd

from bakeoff.config import register
from bakeoff.cost import cost_of
from bakeoff.device import choose_device, device_name
from bakeoff.hardware import Hardware
from bakeoff.loop import update_once
from bakeoff.predict import predict
from bakeoff.validation import compose
from benchmarks.calibrate import calibrated, clock_of
from benchmarks.start import endless, started, with_device

ONE_TRY = ["algorithm.optimizer.backtracks=1"]  # a trust-region step takes as many as it needs; predicted is the most
METHODS: dict[str, list[str]] = {"grpo": [], "ppo": [], "trpo": ONE_TRY}
WIDE = {"hidden_size": 192, "intermediate_size": 528}  # of three times the width: nine times the parameters
MODELS = {"tiny": [], "tiny, three times as wide": [f"++model.architecture.{key}={n}" for key, n in WIDE.items()]}
UPDATES, WARM_UP = 12, 2


def compared(method: str, device: str, settings: list[str], hardware: Hardware) -> dict[str, tuple[float, float]]:
    """Predicted seconds of each phase, and the fewest measured ones."""
    config = compose([f"algorithm={method}", f"device={device}", *METHODS[method], *settings])
    config.hardware = hardware
    predicted = cost_of(config, predict(config)).seconds
    loop = endless(started(config))
    loop.phases.clock = clock_of(loop.phases.device)
    rows = [update_once(loop).measured.seconds for _ in range(WARM_UP + UPDATES)][WARM_UP:]
    measured = {phase: min(row[phase] for row in rows) for phase in predicted}
    return {phase: (predicted[phase], measured[phase]) for phase in predicted}


def main() -> None:
    """Prints a table for each model, as Markdown, after a calibration."""
    device: str = with_device(argparse.ArgumentParser(description=__doc__)).device
    register()
    for model, settings in MODELS.items():
        hardware = calibrated(device, choose_device(device))
        rows = []
        for method in METHODS:
            phases = compared(method, device, settings, hardware)
            sums = tuple(map(sum, zip(*phases.values(), strict=True)))
            for phase, (predicted, measured) in (phases | {"**sum**": sums}).items():
                error = f"{predicted / measured - 1:+.0%}"
                cells = {"predicted (ms)": f"{predicted * 1e3:.0f}", "measured (ms)": f"{measured * 1e3:.0f}"}
                rows.append({"method": f"`{method}`", "phase": phase.replace("_", " "), **cells, "error": error})
        print(f"{model} on {device_name(choose_device(device))}: {hardware.float32_tflops * 1e3:.1f} GFLOP/s, ", end="")
        print(f"{hardware.bandwidth_gb:.2f} GB/s, {hardware.launch_us:.1f} µs an operator\n")
        print(pd.DataFrame(rows).to_markdown(index=False), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
