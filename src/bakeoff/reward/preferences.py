"""Preferences: pairs of completions, one better than the other, and the training of a reward model on them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import accumulate

from bakeoff.batch import Example
from bakeoff.errors import UserError
from bakeoff.task.jsonl import read_rows
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
    pairs, heldout  number of training pairs and of held-out pairs
    label_noise     share of the training pairs whose order is reversed
    steps, batch    number of AdamW steps, and pairs per step
    renewal_steps, renewal_pairs   steps, and pairs of new completions, at each outer iteration of an iterative method
    replay          share of earlier pairs in a renewal: 0.1 in DeepSeekMath §4.1.4
    """

    path: str = ""
    pairs: int = 2048
    heldout: int = 512
    label_noise: float = 0.0
    steps: int = 100
    batch: int = 64
    lr: float = 1e-3
    seed: int = 0
    renewal_steps: int = 25
    renewal_pairs: int = 256
    replay: float = 0.1

    def __post_init__(self) -> None:
        least = {"pairs": 1, "heldout": 1, "steps": 1, "batch": 1, "renewal_steps": 0, "renewal_pairs": 1}
        for key, value in least.items():
            if getattr(self, key) < value:
                raise UserError(f"preferences.{key} is {getattr(self, key)}; it must be at least {value}.")
        for key in ("label_noise", "replay"):
            if not 0 <= getattr(self, key) < 1:
                raise UserError(f"preferences.{key} is {getattr(self, key)}; it must be at least 0 and below 1.")
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
