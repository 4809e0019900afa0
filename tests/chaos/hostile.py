"""Hostile completions against the scorers of reasoning-gym: `python -m tests.chaos.hostile [GENERATOR …]`.

A pair of scorer and completion survives if the call returns in time with a score in [0, 1] or as failed, no file was
written, and the next completion, which is the right answer, gets the score that it gets in this process.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

from bakeoff.errors import UserError
from bakeoff.reward.reward import Reward
from bakeoff.task.gym import Extract, ReasoningGym

TIMEOUT_S = 1.0
SLACK_S = 20.0  # of a busy machine, beside the time limit


class Trial(NamedTuple):
    """One completion against one scorer; fault: empty where it survived; failed: whether it could not be scored."""

    generator: str
    completion: str
    failed: bool
    fault: str


def completions(marker: Path) -> list[str]:
    """Texts that write `marker`, hang, end the process, use up memory, or raise in code that evaluates or parses them."""
    write = f"open({str(marker)!r}, 'w').write('x')"
    return [
        write,
        f"[[{write}]]",
        f"[{write}, 1]",
        f"__import__('os').system('touch {marker}')",
        f"__import__('pathlib').Path({str(marker)!r}).touch()",
        f"__import__('subprocess').run(['touch', {str(marker)!r}])",
        f"exec(\"import os; os.mkdir({str(marker)!r})\")",
        "__import__('os').kill(__import__('os').getppid(), 9)",
        "__import__('os').killpg(0, 9)",
        "__import__('os')._exit(0)",
        "exit()",
        "quit(0)",
        "__import__('os').abort()",
        "9**9**9**9",
        "[9**9**9**9]",
        "factorial(10**9)",
        "__import__('time').sleep(1000)",
        "[0] * 10**11",
        "'x' * 10**12",
        "(" * 5000 + ")" * 5000,
        "[" * 5000,
        "-" * 20_000 + "1",
        "1" * 10_000,
        "1e999",
        "nan",
        "-inf",
        "1/0",
        "",
        "\x00",
        "\ud800",
        "{}",
        "null",
        "a\n" * 2000,
        "<answer>" * 2000,
        "∀x∃y ٣ ²",
        "lambda: 0",
    ]


def trials(generator: str, texts: list[str] | None = None) -> Iterator[Trial]:
    """Yields each trial of a generator's scorer; `texts` are all completions where none are given."""
    with tempfile.TemporaryDirectory() as folder:
        marker = Path(folder) / "marker"
        task, reward = ReasoningGym(generator=generator, extract=Extract.whole), Reward({"verifier": 1.0})
        example = task.generate(Random(1))
        [[right, *_]] = [task.judge(example.answer, example) and (task.judge(example.answer, example).score,)]
        for text in completions(marker) if texts is None else texts:
            began = time.monotonic()
            hostile, after = reward.judge(task, [text, example.answer], [example] * 2)
            faults = {
                "wrote a file": any(Path(folder).iterdir()),
                "hung": time.monotonic() - began > 2 * TIMEOUT_S + SLACK_S,
                "score out of range": not 0 <= hostile.score <= 1,
                "spoilt the next score": after.score != right,
            }
            yield Trial(generator, text, hostile.failed, ", ".join(fault for fault, found in faults.items() if found))
