"""What makes the arms of a study comparable, how they are not, and how their configurations differ."""

from __future__ import annotations

import re

import pandas as pd

from bakeoff.mlflow_store import defines_arm
from bakeoff.report.naming import labels, shortened, varied
from bakeoff.report.statistics import counted
from bakeoff.report.study import Study, outcome
from bakeoff.report.tables import in_html

MUST_MATCH = [
    "task",
    "model",
    "sft",
    "reward",
    "preferences",
    "engine",
    "batch",
    "sampling",
    "lag",
    "budget",
    "evaluation",
]
STARTS = {"model", "task", "sft"}  # keys that a start depends on
TAGS = ["commit", "device", "torch"]  # of a run, which must match too
NAMED = 6  # arms that a sentence names
FEW_ARMS = 3  # up to which a table has a column for each arm


def question_of(study: Study) -> list[str]:
    """The keys and groups in which the arms differ on purpose: what the sweep varies and what the study declares."""
    declared = study.param("study.varies").unique()
    return varied(study.runs) + [key for each in declared for key in re.findall(r"[\w./]+", each)]


def mismatches(study: Study) -> list[str]:
    """Sentences on each unintended difference between arms and on each missing run; empty if the arms are matched.

    A setting that the study varies on purpose, as `question_of` lists it, is not a mismatch.
    """
    found = unequal_settings(study) + unequal_tags(study)
    if study.runs.empty:
        return [*found, "no run is complete", *unfinished(study)]
    if not study.trained:
        return found
    unknown = study.runs[study.runs["start"] == ""]
    if len(unknown):
        found.append(f"the start weights of {', '.join(labels(unknown))} are not known")
    elif (study.runs.groupby("seed")["start"].nunique() > 1).any() and not STARTS & set(question_of(study)):
        found.append("the arms start from different weights")
    seeds_of = {str(name): set(rows["seed"]) for name, rows in study.runs.groupby("name")}
    every = set.union(*seeds_of.values())
    for name, own in seeds_of.items():
        if own != every:
            found.append(f"{name} has no run with seed {', '.join(map(str, sorted(every - own)))}")
    if (named := study.declared("baseline")) and not study.baseline:
        found.append(f"{named}, with which the study compares the other arms, has no finished run")
    return found + unfinished(study) + unequal_tuning(study) + unequal_steps(study)


def unfinished(study: Study) -> list[str]:
    """A sentence for each run that is not in the study's statistics, with its reason."""
    return [
        f"{label} did not finish ({outcome(run)}): {run.get('failure') or 'no reason was logged'}"
        for label, (_, run) in zip(labels(study.unfinished), study.unfinished.iterrows(), strict=True)
    ]


def unequal_settings(study: Study) -> list[str]:
    """A sentence for each parameter that must match within a seed and differs between arms."""
    keys, asked = study.params["key"], tuple(f"{key}." for key in question_of(study))
    in_question = (keys + ".").str.startswith(asked)  # the key itself, or a group with it: `model` has `model.name`
    shared = study.params[keys.str.split(".").str[0].isin(MUST_MATCH) & ~in_question]
    wide = shared.pivot(index="run", columns="key", values="value").reindex(study.runs["run"]).fillna("none")
    names, seeds = (study.runs.set_index("run")[column] for column in ("name", "seed"))
    in_seed, in_arm = (wide.groupby(by.to_numpy()).nunique().max() > 1 for by in (seeds, names))
    # A value that varies with the seed alone, and differs for each seed, is drawn by it.
    differs = in_seed | ((wide.nunique() > 1) & (~in_arm | (wide.nunique() < seeds.nunique())))
    return [f"{key} differs: {values_by_arm(study, wide[key])}" for key in wide.columns[differs]]


def unequal_tags(study: Study) -> list[str]:
    """A sentence for each of TAGS that differs between runs: they are of several versions or machines."""
    runs, asked = study.runs.set_index("run"), question_of(study)
    values = {tag: runs[tag].replace("", "unknown") for tag in TAGS if tag in runs and tag not in asked}
    return [f"{tag} differs: {values_by_arm(study, each)}" for tag, each in values.items() if each.nunique() > 1]


def values_by_arm(study: Study, values: pd.Series) -> str:
    """`by_value` of the arms where each has one value in all of its runs (index), else of the runs."""
    runs = study.runs.set_index("run").loc[values.index]
    if (values.groupby(runs["name"]).nunique() == 1).all():
        return by_value(values.groupby(runs["name"], sort=False).first())
    return by_value(values.set_axis(labels(runs)))


def by_value(values: pd.Series) -> str:
    """`4 (ppo); 8 (the others)`: each value with the arms (index) that share it, the rarest value first."""
    arms = sorted(((value, list(own.index)) for value, own in values.groupby(values)), key=lambda each: len(each[1]))
    named = [(", ".join(shortened([str(name) for name in own], NAMED)), value) for value, own in arms]
    if len(arms) > 1 and len(arms[-1][1]) > 1:
        named[-1] = ("the others", arms[-1][0])
    return "; ".join(f"{value} ({who})" for who, value in named)


def unequal_tuning(study: Study) -> list[str]:
    """Sentences that name arms that were not tuned, and arms that were tuned unequally: in trials, seeds or budget."""
    found, untuned = [], study.runs["name"][study.runs["tuned"] == "untuned"].astype(str).unique().tolist()
    if len(untuned) > 1 and len(untuned) == study.runs["name"].nunique():
        found.append("no arm was tuned")
    elif untuned:
        found.append(f"{', '.join(shortened(untuned, NAMED))} {'were' if len(untuned) > 1 else 'was'} not tuned")
    trials, commands = study.param("tuned.trials"), study.param("tuned.command")
    seeds = study.param("tuned.seeds").str.findall(r"\d+").map(len)
    budgets = commands[commands != ""].str.extract(r"\bbudget\.limit=(\S+)", expand=False).fillna("the protocol's")
    for values in (
        trials[trials.str.fullmatch(r"[1-9]\d*")] + " trials",
        seeds[seeds > 0].map(lambda number: counted(number, "tuning seed")),
        "a tuning budget of " + budgets,
    ):
        of_arms = values.groupby("name", sort=False).first()
        if of_arms.nunique() > 1:
            found.append(f"the arms had unequal tuning: {by_value(of_arms)}")
    return found


def unequal_steps(study: Study) -> list[str]:
    """A sentence that names arms with different numbers of optimiser steps a rollout, unless the study varies them."""
    keys = ("algorithm.optimizer.epochs", "algorithm.optimizer.minibatches")
    if any(key in question_of(study) for key in keys):
        return []
    factors = [pd.to_numeric(study.param(key), errors="coerce").groupby("name", sort=False).first() for key in keys]
    steps = factors[0].mul(factors[1], fill_value=1).reindex(study.arms).fillna(1).astype(int)
    return [f"optimiser steps a rollout differ: {by_value(steps)}"] if steps.nunique() > 1 else []


def matched(study: Study) -> str:
    """How the arms are matched, and what the study varies on purpose, as HTML."""
    shared = "start weights, prompts, completions per update, budget and evaluation"
    if not study.trained:
        shared = "task, model and the sizes of the batch"
    text = f"<strong>Matched:</strong> arms of a seed share {shared}."
    if mismatches(study):
        text = "The arms are not matched: see the warning at the top."
    asked = ", ".join(f"<code>{in_html(key)}</code>" for key in question_of(study))
    return f"<p>{text}{f' <strong>Varied on purpose:</strong> {asked}.' if asked else ''}</p>"


def config_diff(study: Study) -> pd.DataFrame:
    """A row for each parameter that differs between arms, a column for each arm, from its run with the lowest seed.

    Values that the seed draws, such as `sft.seed`, are not a difference between arms.
    """
    names = study.runs.sort_values("seed").drop_duplicates("name").set_index("run")["name"]
    params = study.params[study.params["key"].map(defines_arm) & study.params["run"].isin(names.index)]
    params = params[~params["key"].str.endswith("_option_")].assign(name=params["run"].map(names))
    wide = params.pivot_table(index="key", columns="name", values="value", aggfunc="first").reindex(columns=study.arms)
    differs = wide.fillna("–").nunique(axis=1) > 1
    return wide[differs].fillna("–").sort_index()


def configuration(study: Study) -> pd.DataFrame:
    """`config_diff` in a page's width: of many arms, each one's values that are not the most common ones, as a list."""
    wide = config_diff(study)
    if len(study.arms) <= FEW_ARMS:
        return wide.rename_axis("parameter").reset_index()
    common = {key: values.mode()[0] for key, values in wide.iterrows()}
    own = {arm: values[(values != "–") & (values != pd.Series(common, dtype=object))] for arm, values in wide.items()}
    lists = ["; ".join(f"{key} {value}" for key, value in values.items()) or "–" for values in own.values()]
    return pd.DataFrame({"arm": list(wide), "differs from the most common values in": lists})
