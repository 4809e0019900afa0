"""The share of the time that sampling takes, by the length of an answer."""

from __future__ import annotations

import pandas as pd

from bakeoff.report.claim import Claim
from bakeoff.report.comparisons import Family
from bakeoff.report.pages.sample_reuse import sampling_share
from bakeoff.report.statistics import Estimate, mean_interval, share_interval
from bakeoff.report.study import Study
from bakeoff.report.tables import INTERVAL, by_run, grouped, summary

NOTEBOOK = "methods"
DIGITS, SHARE = "task.digits", "share of training time in sampling"


def runs_by_length(study: Study) -> pd.DataFrame:
    """A row for each run: name, seed, digits of its task, mean tokens of a completion, and the share of sampling."""
    return by_run(
        study,
        digits=study.param(DIGITS).astype(int),
        tokens=grouped(study, "length/mean").mean(),
        share=sampling_share(study),
    )


def shares(study: Study) -> pd.DataFrame:
    """The share of training time in sampling: a row for each seed, a column for each number of digits."""
    return runs_by_length(study).pivot(index="seed", columns="digits", values="share")


def table(study: Study) -> pd.DataFrame:
    """A row for each number of digits: mean tokens of a completion, and the share of sampling."""
    columns = {"tokens": "mean tokens of a completion", "share": f"{SHARE} {INTERVAL}"}
    return summary(runs_by_length(study), {"digits": "digits"}, columns)


def verdict(study: Study) -> str:
    """The share at the shortest and at the longest answers."""
    found, tokens = shares(study), runs_by_length(study).groupby("digits")["tokens"].mean()
    ends = [
        f"{share_interval(found[digits]).text()} of the training time with completions of {tokens[digits]:.0f} tokens"
        for digits in sorted({found.columns.min(), found.columns.max()})
    ]
    note = Family({("longest", "shortest"): grown(found)}, study.margin).note
    return (
        f"Sampling takes {' and '.join(ends)}. {note} Times are those of one thread, of this model and of this device."
    )


def grown(found: pd.DataFrame) -> pd.Series:
    """The share of `shares` with the longest answers less that with the shortest, by seed."""
    return (found[found.columns.max()] - found[found.columns.min()]).dropna()


def growth(study: Study) -> Estimate:
    """The share with the longest answers less that with the shortest."""
    return mean_interval(grown(shares(study)))


CLAIMS = [
    Claim(
        "1 REINFORCE",
        "With fresh samples for every update, sampling takes this share of the time, for answers of sixty digits",
        SHARE,
        lambda study: share_interval(shares(study)[60]),
    ),
    Claim(
        "1 REINFORCE",
        "The longer the answer, the larger the share of sampling",
        f"{SHARE}, sixty digits − five",
        growth,
        above=0.0,
    ),
]
