"""Seconds of an update beside those of TRL's GRPOTrainer on the same work: the table of docs/peers.md.

Ours and TRL's run in alternation, a process of one thread each, in one environment (`make bench-peers`). Both start
from the same weights, read the same prompts in the same order, and take the same number of optimizer steps on the same
number of completions.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import date
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from bakeoff.algorithm.kl import InLoss
from bakeoff.algorithm.objective import Clip
from bakeoff.algorithm.optimizer import Adam
from bakeoff.config import Config, register
from bakeoff.device import HOST
from bakeoff.learner.sft import starting_policy
from bakeoff.loop import update_once
from bakeoff.model.weights import save
from bakeoff.randomness import stdlib_random
from bakeoff.start import collector_of, prepare
from bakeoff.validation import compose
from benchmarks.start import started


def exact(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """1 for a completion that equals its answer: what our verifier of `sort` says, for TRL."""
    return [float(completion == right) for completion, right in zip(completions, answer, strict=True)]


def even_ids(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Share of even token ids: a reward that differs between the completions of random weights."""
    return [sum(token % 2 == 0 for token in ids) / max(len(ids), 1) for ids in completion_ids]


@dataclass(frozen=True)
class Work:
    """The same work for both.

    name        as the table has it
    overrides   our configuration, which TRL's is derived from
    reward      the reward function of TRL; ours is named in the overrides where it is not the verifier
    goal        the ratio of seconds, ours to TRL's, that we want to stay below
    updates     number of updates that a process times, after `warm_up` others
    """

    name: str
    overrides: list[str]
    reward: Callable[..., list[float]]
    goal: float
    updates: int
    warm_up: int

    def config(self, *overrides: str) -> Config:
        """Our configuration of this work."""
        return compose(["algorithm=grpo", f"device={HOST}", "threads=1", *self.overrides, *overrides])

    def from_folder(self, folder: str) -> Config:
        """The configuration that starts from the saved weights."""
        return self.config(f"model.name={folder}", "sft.steps=0")


WORKS = {
    "sort": Work(
        name="sort-10, Llama of 0.1M parameters: 32 prompts of 11 tokens × 8 of up to 11, 2 epochs × 2 minibatches",
        overrides=[
            *("batch.prompts=32", "batch.group_size=8", "task.max_new_tokens=11"),
            *("algorithm.optimizer.epochs=2", "algorithm.optimizer.minibatches=2"),
        ],
        reward=exact,
        goal=0.4,
        updates=10,
        warm_up=3,
    ),
    "smollm2": Work(
        name="SmolLM2-135M's architecture: 2 prompts of 143 tokens × 8 of 32, 1 epoch × 2 minibatches",
        overrides=[
            *("model=smollm2_135m", "model.name=scratch", "model.chat=false", "model.precision=float32"),
            *('model.characters="0123456789=\n"', "task=sort", "task.shots=6", "task.heldout=8"),
            *("task.max_new_tokens=32", "batch.prompts=2", "batch.group_size=8", "tuned=none"),
            *("algorithm.optimizer.epochs=1", "algorithm.optimizer.minibatches=2", "reward=function"),
            "+reward.functions={benchmarks.peers.even_ids: 1.0}",
        ],
        reward=even_ids,
        goal=0.5,
        updates=1,
        warm_up=1,
    ),
}


@dataclass
class Measured:
    """What a process measured, by update.

    seconds       on the clock
    cpu_seconds   of the processor, which other processes of a busy machine do not lengthen
    lengths       mean tokens of a completion
    """

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    lengths: list[float] = field(default_factory=list)

    def begin(self) -> None:
        """The first update begins."""
        self._since = time.perf_counter(), time.process_time()

    def end(self) -> None:
        """An update ends, and the next one begins."""
        now = time.perf_counter(), time.process_time()
        self.seconds.append(now[0] - self._since[0])
        self.cpu_seconds.append(now[1] - self._since[1])
        self._since = now


def ours(work: Work, folder: str) -> Measured:
    """Whole updates, the measurement of their KL included."""
    loop, measured = started(work.from_folder(folder)), Measured()
    measured.begin()
    for _ in range(work.warm_up + work.updates):
        collected = update_once(loop).collected
        measured.end()
        measured.lengths.append(collected.tokens / collected.sequences)
    return measured


class Clock(TrainerCallback):  # type: ignore[misc]
    """Times TRL's updates, each of which is several steps of its trainer."""

    def __init__(self, measured: Measured, steps: int) -> None:
        self._measured, self._steps = measured, steps

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._measured.begin()

    def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        if state.global_step % self._steps == 0:
            self._measured.end()


def theirs(work: Work, folder: str) -> Measured:
    """TRL's updates, from the last step of one to the last step of the next."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    config, measured = work.from_folder(folder), Measured()
    algorithm, batch, task = config.algorithm, config.batch, config.task
    adam, clip, penalty = algorithm.optimizer, algorithm.objective, algorithm.kl_to_reference
    assert isinstance(adam, Adam)
    assert isinstance(clip, Clip)
    assert isinstance(penalty, InLoss)
    torch.set_num_threads(config.threads)
    updates, steps = work.warm_up + work.updates, adam.epochs * adam.minibatches
    shots = "".join(f"{shot.prompt}{shot.answer}\n" for shot in task.shot_examples())
    rows = [
        {"prompt": shots + example.prompt, "answer": example.answer}
        for number in range(updates)
        for example in task.training_examples(batch.prompts, stdlib_random(config.seed, "prompts", number))
    ]

    def reward(**columns: Any) -> list[float]:
        """The work's reward; TRL calls it once an update."""
        measured.lengths.append(statistics.fmean(map(len, columns["completion_ids"])))
        return work.reward(**columns)

    with tempfile.TemporaryDirectory() as output:
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
            processing_class=AutoTokenizer.from_pretrained(folder),
            reward_funcs=reward,
            train_dataset=Dataset.from_list(rows),
            callbacks=[Clock(measured, steps)],
            args=GRPOConfig(
                output_dir=output,
                # the update: its completions, its optimizer steps
                num_generations=batch.group_size,
                per_device_train_batch_size=batch.sequences // adam.minibatches,
                steps_per_generation=adam.minibatches,
                num_iterations=adam.epochs,
                gradient_accumulation_steps=1,
                max_steps=updates * steps,
                max_completion_length=task.max_new_tokens,
                temperature=config.sampling.temperature,
                shuffle_dataset=False,
                # the method
                loss_type="grpo",
                scale_rewards="group",
                beta=penalty.beta,
                use_bias_correction_kl=penalty.ratio_corrected,
                epsilon=clip.epsilon_low,
                epsilon_high=clip.epsilon_high,
                optim="adamw_torch_fused",
                learning_rate=adam.lr,
                lr_scheduler_type="constant",
                adam_beta1=adam.beta1,
                adam_beta2=adam.beta2,
                weight_decay=adam.weight_decay,
                max_grad_norm=adam.max_gradient_norm,
                # one thread, float32, and nothing beside the updates
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=config.model.gradient_checkpointing,
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
        )
        trainer.train()
    return measured


SIDES = {"ours": ours, "trl": theirs}


def in_process(side: str, work: str, folder: str) -> Measured:
    """What a fresh process of one thread measures."""
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "HF_HUB_OFFLINE"), "1")
    command = [sys.executable, "-m", "benchmarks.peers", "--side", side, "--work", work, "--start", folder]
    done = subprocess.run(command, env=os.environ | one_thread, stdout=subprocess.PIPE, text=True, check=True)
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def save_start(work: Work, folder: str) -> None:
    """Saves weights and tokenizer that both start from: our supervised start, or random weights."""
    config = work.config()
    policy, _ = starting_policy(config, collector_of(config), prepare(config), lambda message: None)
    save(policy, Path(folder))


def compare(key: str, pairs: int) -> dict[str, str]:
    """The row of a work: medians over all timed updates of a side; a ratio is the median over pairs, with its range."""
    work, runs = WORKS[key], {side: list[Measured]() for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        save_start(work, folder)
        for number in range(pairs):
            for side, measured in runs.items():
                measured.append(in_process(side, key, folder))
                print(f"{key} {number + 1}/{pairs} {side}: {measured[-1]}", file=sys.stderr, flush=True)

    def timed(side: str, quantity: str) -> list[list[float]]:
        return [getattr(measured, quantity)[work.warm_up :] for measured in runs[side]]

    def middle(quantity: str) -> str:
        values = [statistics.median(chain.from_iterable(timed(side, quantity))) for side in SIDES]
        return " / ".join(f"{value:.2f}" for value in values)

    def ratio(quantity: str) -> str:
        ratios = [
            statistics.median(a) / statistics.median(b)
            for a, b in zip(timed("ours", quantity), timed("trl", quantity), strict=True)
        ]
        return f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"

    return {
        "work": work.name,
        "seconds, ours / TRL": middle("seconds"),
        "ratio [pairs]": ratio("seconds"),
        "CPU seconds": middle("cpu_seconds"),
        "ratio of these": ratio("cpu_seconds"),
        "goal": f"≤ {work.goal}",
        "tokens a completion": middle("lengths"),
    }


def processor() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    """Prints the table as Markdown; with --side, measures one side in this process and prints it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3, help="number of processes of each side")
    parser.add_argument("--work", choices=WORKS, help="only this work")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--start", help=argparse.SUPPRESS)
    options = parser.parse_args()
    register()
    if options.side:
        print(json.dumps(asdict(SIDES[options.side](WORKS[options.work], options.start))))
        return
    rows = [compare(key, options.pairs) for key in ([options.work] if options.work else WORKS)]
    print(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True))
    packages = ", ".join(f"{name} {version(name)}" for name in ("trl", "transformers", "torch"))
    print(
        f"\n({options.pairs} alternating pairs of processes of one thread, {processor()}, {packages}, {date.today()})"
    )


if __name__ == "__main__":
    main()
