"""What a study comes to, for a terminal and a README: one table in Markdown, and sentences with figures."""

from __future__ import annotations

from collections.abc import Callable

from bakeoff.report.bounds import bounds_verdict
from bakeoff.report.frontier import frontier_verdict
from bakeoff.report.memory import peaks_markdown
from bakeoff.report.overoptimisation import overoptimisation_verdict
from bakeoff.report.quality import ADVANTAGE, GRADIENT, advantage_verdict, gradient_verdict, quality_table
from bakeoff.report.reuse import reuse_verdict
from bakeoff.report.study import Study
from bakeoff.report.tables import league_markdown, verdict
from bakeoff.report.tuning import search_table, tuning_verdict

# by notebook; of the others the league and its verdict
VERDICTS: dict[str, Callable[[Study], str]] = {
    "kl_frontier": frontier_verdict,
    "sample_reuse": reuse_verdict,
    "clip_vs_adaptive": bounds_verdict,
    "rlhf": overoptimisation_verdict,
    "tuning": tuning_verdict,
    "gradient_quality": gradient_verdict,
    "advantage_quality": advantage_verdict,
}
TABLES: dict[str, Callable[[Study], str]] = {
    "tuning": lambda study: search_table(study).to_markdown(index=False) + "\n",
    "gradient_quality": lambda study: quality_table(study, GRADIENT).to_markdown(index=False, floatfmt=".3g") + "\n",
    "advantage_quality": lambda study: quality_table(study, ADVANTAGE).to_markdown(index=False, floatfmt=".3g") + "\n",
}


def study_table(study: Study) -> str:
    """The table of a study in Markdown: the league where policies were trained, else what was measured instead."""
    return TABLES.get(study.notebook, league_markdown if study.trained else peaks_markdown)(study)


def study_verdict(study: Study) -> str:
    """What a study's data say, in sentences; of predictions nothing, whose table says it."""
    if study.notebook in VERDICTS:
        return VERDICTS[study.notebook](study)
    return verdict(study) if study.trained else ""
