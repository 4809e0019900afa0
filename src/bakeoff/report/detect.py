"""How many seeds a study needs to show a difference, and the command that adds them to the sweep that is there."""

from __future__ import annotations

import itertools
import re
import shlex

from bakeoff.errors import UserError
from bakeoff.report.comparisons import family
from bakeoff.report.statistics import counted, detectable, seeds_to_detect
from bakeoff.report.study import Study

MOST = 10_000  # seeds that a command lists


def detect(study: Study, difference: float) -> str:
    """How many seeds find a difference in final accuracy with power 0.8, and the command that runs the missing ones.

    Raises UserError where the study's runs do not say how much seeds differ.
    """
    found = family(study)
    comparisons = len(found.differences)
    if not found.deviation > 0:
        raise UserError(
            f"the study '{study.name}' has no two arms whose accuracies differ from seed to seed; --detect needs a "
            "trained study of at least two arms and two seeds."
        )
    if detectable(found.deviation, MOST, comparisons, found.step) > difference:
        raise UserError(f"--detect is {difference:g}, which needs more than {MOST} seeds; choose a larger difference.")
    needed = seeds_to_detect(difference, found.deviation, comparisons, found.step)
    return (
        f"A difference of {difference:g} in held-out greedy accuracy needs {counted(needed, 'seed')} per arm (four "
        f"of five such studies find it; pooled deviation of paired differences {found.deviation:.2g}, corrected for "
        f"{counted(comparisons, 'comparison')}); the study has {found.seeds}. {more(study, needed)}"
    )


def more(study: Study, needed: int) -> str:
    """The command that adds seeds to a study's newest sweep until every arm has the number that is needed."""
    have, tuned = {int(seed) for seed in study.runs["seed"]}, re.findall(r"\d+", study.declared("tuning_seeds"))
    if needed <= len(have):
        return "These suffice."
    free = (n for n in itertools.count(max(have) + 1) if n not in map(int, tuned))
    seeds = f"seed={','.join(str(n) for n in itertools.islice(free, needed - len(have)))}"
    if not study.command:
        return f"The sweep's folder is not in the store; name it: bakeoff sweeps={study.name} {seeds} hydra.sweep.dir=…"
    *words, folder = [word for word in shlex.split(study.command) if not word.startswith("seed=")]
    return f"To add the missing ones, type: {shlex.join([*words, seeds, folder])}"
