"""The start that all measurements share: the device of their command line, and a loop, which may know no end."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

from bakeoff.config import Config
from bakeoff.device import choose_device
from bakeoff.errors import UserError
from bakeoff.loop import Loop
from bakeoff.model.policy import Policy
from bakeoff.start import prepare, start

# of an architecture, as `model=qwen2_5_0_5b`: random weights, in bfloat16, with no start of its own
UNTRAINED = [
    "model.name=scratch",
    "model.characters='0123456789=+-*, '",
    "model.chat=false",
    "model.precision=bfloat16",
]
UNTRAINED += ["tuned=none", "sft.steps=0", "task.heldout=8"]


def with_device(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options of the command line, `--device` among them; exits with one sentence for an unknown device."""
    parser.add_argument("--device", default="auto", help="auto (a GPU where there is one), or another device of torch")
    options = parser.parse_args()
    try:
        choose_device(options.device)
    except UserError as error:
        parser.error(str(error))
    return options


def started(config: Config) -> Loop:
    """The loop of a configuration, on its device."""
    return start(config, prepare(config))


@dataclass
class Endless(Policy):
    """A policy whose completions use their whole budget, as a prediction assumes: no token ends them."""

    @property
    def eos_ids(self) -> list[int]:
        return [-1]


def endless(loop: Loop) -> Loop:
    """The loop with completions that use their whole budget."""
    actor = Endless(**vars(loop.learner.actor))
    return replace(loop, learner=replace(loop.learner, actor=actor))
