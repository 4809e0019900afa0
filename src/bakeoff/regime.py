"""A regime of the arena: a situation that isolates one property, and what theory predicts of the methods in it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from bakeoff.errors import UserError

SAMPLED_ACCURACY = "eval/sampled_accuracy"
START = "start"  # in the place of the second method: the value of the first one before its first update
FORM = re.compile(r"(?:([\w/]+): *)?(\w+)(?:@(\w+))? *([>~]) *(\w+)(?:@(\w+))?")


@dataclass(frozen=True)
class Prediction:
    """A comparison that a regime predicts.

    text                   as the regime's file has it
    metric                 final metric that is compared
    left, right            methods; `right` may be START
    left_in, right_in      regimes in which they are compared, empty for the regime that predicts
    equal                  the two are predicted to be equivalent; otherwise `left` is predicted to be higher
    """

    text: str
    metric: str
    left: str
    left_in: str
    equal: bool
    right: str
    right_in: str


def parsed(text: str) -> Prediction:
    """`[METRIC: ]METHOD[@REGIME] > METHOD[@REGIME]`, or `~` for equivalent; raises UserError for another form."""
    found = FORM.fullmatch(text.strip())
    if found is None:
        raise UserError(
            f"regime.predictions has {text!r}; a prediction has the form `grpo > reinforce`, `grpo ~ grpo@plain` or "
            "`eval/wrong_length: grpo > dr_grpo`."
        )
    metric, left, left_in, sign, right, right_in = found.groups(default="")
    return Prediction(text.strip(), metric or SAMPLED_ACCURACY, left, left_in, sign == "~", right, right_in)


@dataclass
class Regime:
    """A situation in which methods are compared; conf/regime has a file for each.

    name          the file's name
    property      property that the regime isolates, in words
    predictions   comparisons that are predicted, as `grpo > reinforce`; docs/arena.md has the form
    invariances   comparisons that follow from the code, as `grpo ~ grpo@plain`: a difference would be a fault of ours
    source        where the predictions come from
    """

    name: str = ""
    property: str = ""
    predictions: list[str] = field(default_factory=list)
    invariances: list[str] = field(default_factory=list)
    source: str = ""

    def __post_init__(self) -> None:
        for text in (*self.predictions, *self.invariances):
            parsed(text)
