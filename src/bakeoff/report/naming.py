"""The display names of a sweep's arms: a method, or a named arm, and whatever else the sweep varies."""

from __future__ import annotations

import json

import pandas as pd

NOT_SHOWN = ("algorithm", "arm", "seed", "sweeps", "tuned")  # keys that a name does not repeat
SHORT = {
    "model": "",
    "batch.group_size": "G",
    "algorithm.kl_to_reference.beta": "β",
    "algorithm/kl_to_reference": "KL",
    "algorithm/objective": "",
    "algorithm.optimizer.epochs": "epochs",
    "algorithm.optimizer.lr": "lr",
}


def settings(runs: pd.DataFrame) -> list[dict[str, str]]:
    """The overrides of each run, key → value, from its tag `overrides`: a JSON list."""
    lists = runs["overrides"] if "overrides" in runs else pd.Series("", runs.index)
    return [dict(o.lstrip("+~").split("=", 1) for o in json.loads(each or "[]") if "=" in o) for each in lists]


def varied(runs: pd.DataFrame) -> list[str]:
    """The keys that take several values in a sweep, other than method, arm and seed."""
    values = settings(runs)
    keys = dict.fromkeys(key for each in values for key in each)
    return [key for key in keys if key not in NOT_SHOWN and len({each.get(key) for each in values}) > 1]


def arm_names(runs: pd.DataFrame) -> pd.Series:
    """The arm's name, or its algorithm's, then the other values that the sweep varies; one name for each `config_id`.

    Arms that would share a name are distinguished by the first digits of their `config_id`.
    """
    values, keys = settings(runs), varied(runs)
    heads = [each.get("arm", algorithm) for each, algorithm in zip(values, runs["algorithm"], strict=True)]
    names = pd.Series(
        [
            " ".join([head, *(f"{SHORT.get(k, k)}={brief(each[k])}".lstrip("=") for k in keys if k in each)])
            for head, each in zip(heads, values, strict=True)
        ],
        runs.index,
    )
    shared = runs.groupby(names)["config_id"].transform("nunique") > 1
    return names.where(~shared, names + " " + runs["config_id"].str[:4])


def brief(value: str) -> str:
    """A value in a name: a long number, such as an optimiser's draw, keeps three digits."""
    try:
        return value if len(value) < 8 else f"{float(value):.3g}"
    except ValueError:
        return value
