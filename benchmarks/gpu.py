"""Checks of a GPU that no CPU can make, and what they cost there: a table with a verdict in every line.

`make gpu` runs it whole; with `--small` every line runs on any device, so that the script cannot rot.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console
from torch._C._autograd import DeviceType
from torch.profiler import profile

from bakeoff.batch import Rollout
from bakeoff.config import Budget, Config, register
from bakeoff.device import HOST, choose_device, describe_device, wait_for
from bakeoff.learner.checkpoint import load_checkpoint, save_checkpoint
from bakeoff.loop import Loop, Update, update_once
from bakeoff.measure import NOT_REPRODUCIBLE
from bakeoff.measure.phase import largest_peak
from bakeoff.metrics import update_metrics
from bakeoff.model.logprobs import completion_logprobs
from bakeoff.paths import commit
from bakeoff.predict import predict
from bakeoff.rows import select
from bakeoff.validation import compose
from benchmarks.start import UNTRAINED, endless, started, with_device


@dataclass
class Scale:
    """Sizes of the checks.

    updates    of each training run, of `prompts` × 4 completions each, from a start of `sft_steps` supervised steps
    methods    whose training runs are compared with the CPU's
    models     architectures whose memory is predicted and measured; the last is also decoded and differentiated
    sequences, tokens   completions of that model, and the length of each
    """

    updates: int
    prompts: int
    sft_steps: int
    methods: tuple[str, ...]
    models: tuple[str, ...]
    sequences: int
    tokens: int


TEN = ("reinforce", "rloo", "remax", "grpo", "dr_grpo", "dapo", "gspo", "ppo", "ppo_kl", "trpo")
FULL = Scale(24, 64, 100, TEN, ("smollm2_135m", "qwen2_5_0_5b"), 512, 128)
SMALL = Scale(2, 4, 2, ("dapo",), ("tiny",), 8, 8)


@dataclass
class Line:
    """A row of the table: what was checked, measured and expected, and whether the measurement is as expected."""

    check: str
    measured: str
    expected: str
    holds: bool


@dataclass
class Check:
    """The input of every section of the table."""

    device: str
    scale: Scale
    folder: Path

    def config(self, *overrides: str) -> Config:
        """The configuration of a command line on the device."""
        return compose([f"device={self.device}", *overrides])

    def training(self, method: str, *overrides: str) -> Config:
        """A method on sort-10 with the tiny model."""
        scale = self.scale
        limit = f"budget={{unit: updates, limit: {scale.updates}}}"
        return self.config(
            f"algorithm={method}", f"batch.prompts={scale.prompts}", f"sft.steps={scale.sft_steps}", limit, *overrides
        )

    def untrained(self, model: str, *overrides: str) -> Config:
        """An architecture of this size with random weights, in bfloat16."""
        few = ["batch.prompts=8", "batch.group_size=4"]
        return self.config(f"model={model}", *UNTRAINED, *few, *overrides)

    def long(self) -> Config:
        """The largest architecture with completions of the scale's length."""
        length = f"task.max_new_tokens={self.scale.tokens}"
        return self.untrained(self.scale.models[-1], "algorithm=grpo", length, "task.digits=7")


def finish(loop: Loop, budget: Budget) -> list[Update]:
    """Every update that is left of the budget."""
    counters, updates = loop.learner.counters, []
    while counters.progress(budget) < 1:
        updates.append(update_once(loop, counters.progress(budget)))
    return updates


def measured_peak(config: Config) -> float:
    """The largest peak in MB of a second update, which has optimiser state; its models are freed on return."""
    loop = endless(started(config))
    update_once(loop)
    with loop.traced():
        return largest_peak(update_once(loop).measured.peaks) / 1e6


def memory(check: Check) -> Iterator[Line]:
    """The largest peak of an update: predicted, and counted by the device's allocator."""
    for model in check.scale.models:
        for method in ("grpo", "ppo"):
            config = check.untrained(model, f"algorithm={method}", "algorithm.optimizer.epochs=1")
            measured, predicted = measured_peak(config), predict(config).peak / 1e6
            yield Line(
                f"largest peak of {method}, {model}",
                f"{measured:,.1f} MB, {predicted / measured - 1:+.1%} predicted",
                "within 10 %",
                abs(predicted / measured - 1) < 0.1,
            )


def decoding(check: Check) -> Iterator[Line]:
    """Milliseconds per decoded token, and the distance of the engine's log-probs from the training forward's."""
    scale, model = check.scale, check.scale.models[-1]
    loop = started(check.long())
    actor, device = loop.learner.actor, loop.phases.device
    group = scale.sequences // len(loop.heldout.texts)
    seconds = []
    for _ in range(2):  # the first warms up
        began = time.perf_counter()
        rollout = long_rollout(loop, group)
        wait_for(device)
        seconds.append(time.perf_counter() - began)
    rows = slice(0, min(scale.sequences, 16))
    read = select(rollout.sequences, rows)
    with torch.no_grad():
        again = completion_logprobs(actor, read, loop.learner.forward)
    error = float((again - rollout.sampler_logprobs[rows])[read.mask].abs().mean())
    columns, total = read.mask.shape[1], int(rollout.sequences.mask.sum())
    yield Line(
        f"decoding {scale.sequences} completions of {columns} tokens, {model}",
        f"{seconds[-1] / columns * 1e3:.2f} ms a token of every completion, {total / seconds[-1]:,.0f} tokens/s",
        "(a measurement)",
        True,
    )
    yield Line("engine against training forward, bfloat16", f"{error:.4f} nats a token", "below 0.05", error < 0.05)


def long_rollout(loop: Loop, completions: int) -> Rollout:
    """Completions of the held-out prompts."""
    loop.collector.engine.load(loop.learner.actor)
    return loop.collector.roll_out(loop.learner.actor, loop.heldout, completions, "check")


def head(check: Check) -> Iterator[Line]:
    """Log-probs and their gradient, with two bounds on the logits that are held at once."""
    loop = started(check.long())
    learner, device = loop.learner, loop.phases.device
    actor, forward = learner.actor, learner.forward
    sequences = long_rollout(loop, 2).sequences
    found, seconds = [], {}
    for bound in (128, 1024):
        for _ in range(2):  # the first warms up
            began = time.perf_counter()
            logprobs = completion_logprobs(actor, sequences, replace(forward, logits_mb=bound))
            logprobs[sequences.mask].sum().backward()
            wait_for(device)
            seconds[bound] = time.perf_counter() - began
            learner.actor_optimizer.zero_grad(set_to_none=True)
        found.append(logprobs.detach())
    error = float((found[0] - found[1])[sequences.mask].abs().max())
    yield Line(
        f"{len(sequences)} completions of {sequences.mask.shape[1]} tokens forward and back, {check.scale.models[-1]}",
        ", ".join(f"{value * 1e3:.0f} ms with logits_mb={bound}" for bound, value in seconds.items()),
        "the same log-probs to 0.001 nats",
        error < 1e-3,
    )


def resuming(check: Check) -> Iterator[Line]:
    """A run, and two that resume from its middle, with and without deterministic algorithms."""
    speed = {}
    for deterministic in (True, False):
        config = check.training("grpo", "model.precision=bfloat16", f"deterministic={deterministic}")
        loop = started(config)
        for _ in range(check.scale.updates // 2):
            update_once(loop, loop.learner.counters.progress(config.budget))
        saved = save_checkpoint(check.folder / f"checkpoints_{deterministic}", loop.learner, {}, 1)
        began = time.perf_counter()
        ends = [reproducible(loop, config.budget)]
        speed[deterministic] = (time.perf_counter() - began) / len(ends[0])
        for _ in range(2):
            again = started(config)
            again = replace(again, learner=load_checkpoint(saved, again.learner))
            ends.append(reproducible(again, config.budget))
        equal = ends[0] == ends[1] == ends[2]
        yield Line(
            f"two resumed runs, deterministic={str(deterministic).lower()}",
            "equal to the run bit for bit" if equal else "not equal to the run bit for bit",
            "equal" if deterministic else "(a measurement)",
            equal or not deterministic,
        )
    yield Line(
        "an update of grpo, tiny",
        f"{speed[False]:.3f} s, {speed[True]:.3f} s deterministic ({speed[True] / speed[False] - 1:+.0%})",
        "(a measurement)",
        True,
    )


def reproducible(loop: Loop, budget: Budget) -> list[dict[str, float]]:
    """The metrics of every update that is left of the budget, but for time, speed and memory."""
    every = [update_metrics(update, loop.learner.counters) for update in finish(loop, budget)]
    return [{k: v for k, v in metrics.items() if not k.startswith(NOT_REPRODUCIBLE)} for metrics in every]


def curves(check: Check) -> Iterator[Line]:
    """Methods in bfloat16 on the device and in float32 on the CPU, each from a start of its own precision."""
    for method in check.scale.methods:
        ends = []
        for overrides in ([f"device={HOST}"], ["model.precision=bfloat16"]):
            config = check.training(method, *overrides)
            updates = finish(started(config), config.budget)
            last = updates[-max(1, len(updates) // 3) :]
            ends.append(sum(float(each.collected.all_scores.true.mean()) for each in last) / len(last))
        here, there = ends
        yield Line(
            f"true reward of `{method}` in the last third of {check.scale.updates} updates",
            f"{there:.3f} in bfloat16, {here:.3f} on the CPU in float32",
            "within 0.1",
            abs(here - there) < 0.1,
        )


def profiled(check: Check) -> Iterator[Line | str]:
    """The operators that take the time of one update."""
    loop = started(check.training("grpo", "model.precision=bfloat16"))
    update_once(loop)
    with profile(activities=list(torch.profiler.supported_activities())) as found:
        update_once(loop)
    events = [event for event in found.key_averages() if not event.is_user_annotation]
    kernels = [event for event in events if event.device_type != DeviceType.CPU]
    order = "self_device_time_total" if kernels else "self_cpu_time_total"
    rows = sorted(kernels or events, key=lambda event: getattr(event, order), reverse=True)
    total = sum(getattr(event, order) for event in rows)
    yield Line(
        "one profile of an update of grpo, below",
        f"{total / 1e3:.1f} ms in {'kernels' if kernels else 'operators of the host'}",
        "above 0",
        total > 0,
    )
    yield pd.DataFrame(
        {"operator": row.key[:60], "calls": row.count, "ms": f"{getattr(row, order) / 1e3:.2f}"} for row in rows[:12]
    ).to_markdown(index=False)


SECTIONS: tuple[Callable[[Check], Iterator[Line | str]], ...] = (memory, decoding, head, resuming, profiled, curves)


def page(check: Check, lines: list[Line], notes: list[str], small: bool) -> str:
    """The table as Markdown, below device, driver, date and commit."""
    about = describe_device(choose_device(check.device)) | {"date": str(date.today()), "commit": commit()}
    title = "# Checks of a GPU\n\n" + ", ".join(f"{key} {value}" for key, value in about.items())
    command = f"python -m benchmarks.gpu --device {check.device}{' --small' * small}"
    rows = [{**vars(line), "holds": "pass" if line.holds else "**fail**"} for line in lines]
    table = pd.DataFrame(rows).rename(columns={"holds": "verdict"}).to_markdown(index=False)
    return "\n\n".join([f"{title} (`{command}`).", table, *notes]) + "\n"


def main() -> None:
    """Writes the table, section by section, and prints it; exit code 1 where a line does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="small models and few updates, for a CPU")
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu.md"), help="the Markdown file to write")
    options = with_device(parser)
    register()
    console = Console(stderr=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines: list[Line] = []
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        check = Check(options.device, SMALL if options.small else FULL, Path(folder))
        for section in SECTIONS:
            console.print(f"[dim]{section.__name__}[/]")
            try:
                for found in section(check):
                    notes.append(found) if isinstance(found, str) else lines.append(found)
            except Exception as error:  # the other sections are worth having, where a GPU is lent for minutes
                traceback.print_exc()
                lines.append(Line(section.__name__, f"{type(error).__name__}: {error}"[:200], "no error", False))
            options.out.write_text(page(check, lines, notes, options.small))
    print(options.out.read_text())
    failed = [line.check for line in lines if not line.holds]
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
