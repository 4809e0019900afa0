"""Preferences: pairs of completions, one better than the other, and the training of a reward model on them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import accumulate

from bakeoff.batch import Example
from bakeoff.errors import UserError
from bakeoff.ranges import count, number, rate, seed
from bakeoff.task.table import read_rows
from bakeoff.task.task import Task, as_read


@dataclass
class Pair:
    """Two completions of an example's prompt."""

    example: Example
    chosen: str
    rejected: str


@dataclass
class Preferences:
    """Training of the reward model. Every value is ours unless it says otherwise.

    path            a JSONL file of {"prompt", "chosen", "rejected"}; empty: pairs of the start's own completions,
                    ranked by the task's true reward
    pairs           number of training pairs
    heldout         number of held-out pairs
    label_noise     share of the training pairs whose order is reversed
    steps           number of AdamW steps
    batch           number of pairs per step
    lr              learning rate
    seed            seed of the pairs and of their order
    renewal_steps   number of steps at each outer iteration of an iterative method
    renewal_pairs   number of pairs of new completions there
    replay          share of earlier pairs in a renewal: 0.1 in DeepSeekMath §4.1.4
    """

    path: str = ""
    pairs: int = count(2048, least=1, most=2**20, unit="pairs")
    heldout: int = count(512, least=1, most=2**20, unit="pairs")
    label_noise: float = number(0.0, least=0, below=1)
    steps: int = count(100, least=1, unit="steps")
    batch: int = count(64, least=1, most=2**20, unit="pairs")
    lr: float = rate(1e-3)
    seed: int = seed()
    renewal_steps: int = count(25, unit="steps")
    renewal_pairs: int = count(256, least=1, most=2**20, unit="pairs")
    replay: float = number(0.1, least=0, below=1)

    def __post_init__(self) -> None:
        self.file_pairs = read_pairs(self.path) if self.path else []  # here, so that a bad line is refused at once

    def files(self) -> dict[str, str]:
        """The path of the file of pairs, where there is one."""
        return {"path": self.path} if self.path else {}


def read_pairs(path: str) -> list[Pair]:
    """The pairs of a JSONL file; raises UserError that names the line which cannot be read."""
    rows = read_rows(path, "preferences.path", ("prompt", "chosen", "rejected"))
    return [Pair(Example(row["prompt"], row["chosen"]), row["chosen"], row["rejected"]) for row in rows]


def split(pairs: list[Pair], heldout: int, task: Task) -> tuple[list[Pair], list[Pair]]:
    """Training pairs, and `heldout` held-out pairs, which share no prompt; the first prompts of the list are held out.

    A pair whose prompt the task holds out is never trained on. Raises UserError where no pair is left to train on.
    """
    prompts = [as_read(pair.example.prompt) for pair in pairs]
    held: set[str] = set()
    for prompt, before in zip(counts := Counter(prompts), accumulate(counts.values(), initial=0), strict=False):
        if before < heldout:
            held.add(prompt)
    training = [
        pair
        for pair, prompt in zip(pairs, prompts, strict=True)
        if prompt not in held and not task.is_reserved(pair.example.prompt)
    ]
    if not training:
        raise UserError(
            f"preferences.heldout is {heldout}, but of {len(pairs)} pairs none is left to train on: held-out prompts, "
            "the task's own among them, are not trained on; choose fewer, or a file with more prompts."
        )
    return training, [pair for pair, prompt in zip(pairs, prompts, strict=True) if prompt in held][:heldout]
