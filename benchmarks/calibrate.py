"""The measured rates of this machine's device, as a file of conf/hardware that `bakeoff-predict` reads."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from omegaconf import OmegaConf

from bakeoff.batch import Experience
from bakeoff.config import register
from bakeoff.device import HOST, choose_device, describe_device, device_name, memory_bytes, wait_for
from bakeoff.hardware import Hardware
from bakeoff.learner.update import actor_gradient
from bakeoff.loop import Loop, collect, experience_of
from bakeoff.measure.work import Operators, Work
from bakeoff.rows import select
from bakeoff.validation import compose
from benchmarks.start import UNTRAINED, started, with_device

PASS = ["model=small", "tuned=none", "sft.steps=0", "threads=1", "batch.prompts=64", "micro_tokens=0"]
FEW, MANY, REPEATS = 4, 256, 80  # sequences of a pass that waits for launches, and of one that waits for memory
LONG = 0.05  # seconds of a matrix product that is large enough
COPIED = 2**30  # bytes of a copy that no cache holds
# of 0.5B parameters: its passes wait for matrix products and memory
LARGE = ["model=qwen2_5_0_5b", *UNTRAINED, "task.max_new_tokens=128"]


def clock_of(device: torch.device) -> Callable[[], float]:
    """Seconds on the device; on the host those of this process alone, so that others do not count."""
    return time.process_time if device == HOST else time.perf_counter


def least(function: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Fewest seconds of a call, over some calls after the first."""
    clock, times = clock_of(device), []
    for _ in range(repeats + 1):
        wait_for(device)
        began = clock()
        function()
        wait_for(device)
        times.append(clock() - began)
    return min(times[1:])


def product_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """The highest rate of square matrix products, in 10¹² operations per second."""
    best, size, seconds = 0.0, 256, 0.0
    while seconds < LONG and size <= 8192:
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        seconds = least(lambda a=a, b=b: a @ b, device, 10)  # type: ignore[misc]
        best, size = max(best, 2 * size**3 / seconds / 1e12), 2 * size
    return best


def gradient_pass(loop: Loop, experience: Experience, sequences: int, repeats: int) -> tuple[Operators, float]:
    """Operators and fewest seconds of the actor's gradient on that number of sequences."""
    part = select(experience, slice(0, sequences))

    def run() -> None:
        actor_gradient(loop.learner, part)
        loop.learner.actor_optimizer.zero_grad(set_to_none=True)

    with Work() as work, work.counted(1.0, "pass"):
        run()
    return work.phases["pass"], least(run, loop.phases.device, repeats)


def explained(hardware: Hardware, few: tuple[Operators, float], many: tuple[Operators, float]) -> Hardware:
    """The hardware with the bandwidth and the time of a launch that give both passes their seconds."""
    low, high = 1e-3, 1e5
    for _ in range(100):  # by bisection: a higher bandwidth leaves more time for launches, of which both have as many
        bandwidth = (low * high) ** 0.5
        work = replace(hardware, bandwidth_gb=bandwidth, launch_us=0.0)
        launch = max(0.0, few[1] - work.seconds(few[0])) / sum(few[0].values())
        hardware = replace(work, launch_us=launch * 1e6)
        low, high = (bandwidth, high) if hardware.seconds(many[0]) > many[1] else (low, bandwidth)
    return hardware


def gradient_passes(settings: list[str], *sequences: int, repeats: int = REPEATS) -> list[tuple[Operators, float]]:
    """Operators and fewest seconds of GRPO's gradient on each of these numbers of sequences."""
    loop = started(compose(["algorithm=grpo", *settings]))
    experience, _ = experience_of(loop, collect(loop, 0))
    return [gradient_pass(loop, experience, count, repeats) for count in sequences]


def copied_gb(device: torch.device) -> float:
    """Bytes that a copy reads and writes in a second, in 10⁹."""
    source = torch.zeros(COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * COPIED / least(lambda: target.copy_(source), device, 10) / 1e9


def calibrated(name: str, device: torch.device) -> Hardware:
    """The device's rates.

    Matrix products are timed alone. On the CPU, gradients of a small model on few and many sequences give the time of
    a launch and the bandwidth. A GPU queues operators: few sequences of a small model take the time of their launches,
    the bandwidth is that of a copy, and a gradient of a large model gives the share of the rates that it reaches.
    """
    full, half = (product_tflops(device, dtype) for dtype in (torch.float32, torch.bfloat16))
    hardware = Hardware(device_name(device), full, half, calibrated=True)
    small = [f"device={name}", *PASS]
    if device == HOST:
        return explained(hardware, *gradient_passes(small, FEW, MANY))
    ((few, waiting),) = gradient_passes(small, FEW)
    launch = waiting / sum(few.values())
    ((large, working),) = gradient_passes([f"device={name}", *LARGE], 64, repeats=8)
    hardware = replace(hardware, bandwidth_gb=copied_gb(device), memory_gb=memory_bytes(device) / 1e9, queues=True)
    return replace(hardware, launch_us=launch * 1e6, efficiency=min(1.0, hardware.seconds(large) / working))


def main() -> None:
    """Prints the rates, and writes them to conf/hardware in this folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="this", help="name of the file, and of hardware=NAME")
    options = with_device(parser)
    register()
    device = choose_device(options.device)
    found = calibrated(options.device, device)
    about = ", ".join(f"{key} {value}" for key, value in describe_device(device).items())
    source = f"make calibrate, {datetime.now(UTC):%Y-%m-%d}, {about}"
    found = replace(found, name=options.name, source=source)
    values = {key: float(f"{value:.3g}") if isinstance(value, float) else value for key, value in asdict(found).items()}
    path = Path("conf/hardware") / f"{options.name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = OmegaConf.to_yaml({"defaults": ["/schema_hardware@_here_"], **values})
    path.write_text(f"# The rates that `make calibrate` measured.\n{text}")
    print(f"{path}:\n{text}")


if __name__ == "__main__":
    main()
