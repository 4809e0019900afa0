"""The display names of a sweep's arms: a method, or a named arm, and whatever else the sweep varies."""

from __future__ import annotations

import json
import re
from typing import Any

import pandas as pd

from bakeoff.mlflow_store import defines_arm
from bakeoff.terminal import rounded

LONGEST = 60  # characters of a name
NOT_SHOWN = ("algorithm", "sweeps")  # keys that a name does not repeat, beside those that define no arm
SHORT = {
    "model": "",
    "batch.group_size": "G",
    "algorithm.kl_to_reference.beta": "β",
    "algorithm/kl_to_reference": "KL",
    "algorithm/objective": "",
    "algorithm.optimizer.epochs": "epochs",
    "algorithm.optimizer.lr": "lr",
}

# characters that no page, table or terminal can show: controls, directions of writing, and halves of a character
UNSHOWN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def one_line(text: str) -> str:
    """A text of a store, such as a tag, as one line of characters that can be shown."""
    return " ".join(UNSHOWN.sub("\ufffd", text).split())


def settings(runs: pd.DataFrame) -> list[dict[str, str]]:
    """The overrides of each run, key → value, from its tag `overrides`: a JSON list, and none where it is damaged."""
    lists = runs["overrides"] if "overrides" in runs else pd.Series("", runs.index)
    return [dict(o.lstrip("+~").split("=", 1) for o in overrides(each) or [] if "=" in o) for each in lists]


def overrides(tag: str) -> list[str] | None:
    """The list that a tag `overrides` holds, empty without one; none where the tag is damaged."""
    try:
        listed = json.loads(tag or "[]")
    except ValueError:  # cut by a store, or another tool's
        return None
    if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
        return None
    return [one_line(each) for each in listed]  # JSON writes \x1b, which the tag itself does not hold


def by_configuration(runs: pd.DataFrame) -> list[dict[str, str]]:
    """The overrides of each run, equal for all runs of one `config_id`: the longest list among them.

    A run that `resume=` made longer lists its own first settings, a run of a sweep those of the sweep.
    """
    identities = list(runs.get("config_id", runs.index))
    most: dict[Any, dict[str, str]] = {}
    for identity, own in zip(identities, settings(runs), strict=True):
        most[identity] = max(most.get(identity, {}), own, key=len)
    return [most[identity] for identity in identities]


def varied(runs: pd.DataFrame) -> list[str]:
    """The keys that take several values in a sweep, of those that define an arm, other than its method."""
    values = by_configuration(runs)
    keys = dict.fromkeys(key for each in values for key in each)
    own = [key for key in keys if defines_arm(key) and key not in NOT_SHOWN]
    return [key for key in own if len({each.get(key) for each in values}) > 1]


def arm_names(runs: pd.DataFrame) -> pd.Series:
    """The arm's name, or its algorithm's, then the other values that the sweep varies; one name for each `config_id`.

    A name is one line of at most LONGEST characters. Arms that would share one are distinguished by the first digits of
    their `config_id`, or all of them.
    """
    values, keys = by_configuration(runs), varied(runs)
    heads = [each.get("arm", algorithm) for each, algorithm in zip(values, runs["algorithm"], strict=True)]
    names = pd.Series(
        [
            " ".join([head, *(f"{SHORT.get(k, k)}={rounded(each[k])}".lstrip("=") for k in keys if k in each)])
            for head, each in zip(heads, values, strict=True)
        ],
        runs.index,
    )
    names = names.where(names.str.len() <= LONGEST, names.str[: LONGEST - 1] + "…")
    for digits in (4, None):
        shared = runs.groupby(names)["config_id"].transform("nunique") > 1
        names = names.where(~shared, names + " " + runs["config_id"].str[:digits])
    return names


def labels(runs: pd.DataFrame) -> pd.Series:
    """`ppo seed 1` for each run, from its name and seed."""
    return runs["name"] + " seed " + runs["seed"].astype(str)


def shortened(texts: list[str], most: int) -> list[str]:
    """At most `most` texts, and the number of the others."""
    rest = len(texts) - most
    return texts if rest <= 0 else [*texts[:most], f"and {rest} more"]


def enumerated(names: list[str], last: str = "and") -> str:
    """`a`, `a and b`, `a, b and c`."""
    *first, final = names
    return f"{', '.join(first)} {last} {final}" if first else final
