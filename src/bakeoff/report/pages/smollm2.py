"""The arena's question on a real model: its page, with tasks in the place of regimes."""

from __future__ import annotations

from functools import partial

from bakeoff.report.duel import duel
from bakeoff.report.pages import arena
from bakeoff.report.pages.arena import (
    MEASURE,
    TABLES,
    by_difficulty,
    families,
    improvement,
    plot_map,
    plot_profiles,
    predictions,
    score_table,
    table,
)
from bakeoff.report.tables import pass_at_k

__all__ = [
    "MEASURE",
    "TABLES",
    "by_difficulty",
    "duel",
    "families",
    "improvement",
    "pass_at_k",
    "plot_map",
    "plot_profiles",
    "predictions",
    "score_table",
    "table",
]
NOTEBOOK = "arena"
CAVEAT = (
    "Nothing was tuned: all methods have one learning rate times the study's factors, by seed, so that a method may be "
    "low because that rate does not suit it. All results are of one model and two variants of one task."
)
verdict = partial(arena.verdict, caveat=CAVEAT)
