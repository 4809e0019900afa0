"""Preferences: pairs of completions of which one is the better, and how a reward model is made of them."""

from __future__ import annotations

from dataclasses import dataclass

from bakeoff.batch import Example
from bakeoff.errors import UserError
from bakeoff.task.jsonl import read_rows


@dataclass
class Pair:
    """Two completions of an example's prompt."""

    example: Example
    chosen: str
    rejected: str


@dataclass
class Preferences:
    """The reward model's stage: what it is trained on, and how. Every value is ours.

    path            a JSONL file of {"prompt", "chosen", "rejected"}; empty: pairs of the start's own completions,
                    ranked by the task's true reward
    pairs, heldout  number of pairs to train on and to judge by
    label_noise     share of the training pairs whose order is reversed
    steps, batch, lr, seed   AdamW steps of so many pairs
    renewal_steps, renewal_pairs   how it goes on at each outer iteration of an iterative method, from new completions
    replay          share of earlier pairs in that: DeepSeekMath §4.1.4 has 0.1
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


def read_pairs(path: str) -> list[Pair]:
    """The pairs of a JSONL file; raises UserError that names the line which cannot be read."""
    rows = read_rows(path, "preferences.path", ("prompt", "chosen", "rejected"))
    return [Pair(Example(row["prompt"], row["chosen"]), row["chosen"], row["rejected"]) for row in rows]
