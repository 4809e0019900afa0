"""How many seeds a study needs to show a difference, and the commands that add them to the sweep that is there."""

from __future__ import annotations

import itertools
import math
import re
import shlex

from bakeoff.errors import UserError
from bakeoff.report.comparisons import family, pooled
from bakeoff.report.page import page_code
from bakeoff.report.statistics import counted, detectable, seeds_to_detect
from bakeoff.report.study import ACCURACY, PRIMARY, Study

MOST = 10_000  # seeds that a command lists


def detect(study: Study, difference: float) -> str:
    """How many seeds find a difference in final accuracy with power 0.8, and the commands that run the missing ones.

    The comparisons are those that the study's page decides together: its `families`, else all arms, in its
    `MEASURE`, else greedy accuracy. Raises UserError where the study's runs do not say how much seeds differ.
    """
    code = page_code(study.name)
    metric = getattr(code, "MEASURE", ACCURACY)
    found = code.families(study) if hasattr(code, "families") else [family(study, metric)]
    (deviation, comparisons), step = pooled(found), study.step(metric)
    if not deviation > 0:
        raise UserError(
            f"the study '{study.name}' has no two arms whose accuracies differ from seed to seed; --detect needs a "
            "trained study of at least two arms and two seeds."
        )
    if detectable(deviation, MOST, comparisons, step) > difference:
        raise UserError(f"--detect is {difference:g}, which needs more than {MOST} seeds; choose a larger difference.")
    rates = factors(study)
    needed = rates * math.ceil(seeds_to_detect(difference, deviation, comparisons, step) / rates)
    whole = f", as many of each of {rates} learning rates" if rates > 1 else ""
    return (
        f"A difference of {difference:g} in held-out {PRIMARY[metric]} accuracy needs {counted(needed, 'seed')} per "
        f"arm{whole} (four of five such studies find it; pooled deviation of paired differences {deviation:.2g}, "
        f"corrected for {counted(comparisons, 'comparison')}); the study has {study.seeds}. {more(study, needed)}"
    )


def factors(study: Study) -> int:
    """Number of factors of the learning rate that seeds take in turn."""
    values = study.params["value"][study.params["key"] == "lr_factors"]
    return max([1, *(str(value).count(",") + 1 for value in values)])


def more(study: Study, needed: int) -> str:
    """The commands that add seeds to a study's newest sweep until every arm has the number that is needed.

    A seed that some arms lack comes first: what the others have is not run again.
    """
    arms = [set(map(int, own)) for _, own in study.runs.groupby("name")["seed"]]
    have, some = set.intersection(*arms), set.union(*arms)
    if needed <= len(have):
        return "These suffice."
    tuned = set(map(int, re.findall(r"\d+", study.declared("tuning_seeds"))))
    new = (n for n in itertools.count(max(some) + 1) if n not in tuned)
    missing = itertools.islice(itertools.chain(sorted(some - have), new), needed - len(have))
    seeds = f"seed={','.join(map(str, missing))}"
    if not study.command:
        return f"The sweep's folder is not in the store; name it: bakeoff sweeps={study.name} {seeds} hydra.sweep.dir=…"
    launches = []
    for line in study.command.splitlines():
        *words, folder = [word for word in shlex.split(line) if not word.startswith("seed=")]
        launches.append(shlex.join([*words, seeds, folder]))
    ask = "To add the missing ones, type:"
    return "\n".join([ask, *launches]) if len(launches) > 1 else f"{ask} {launches[0]}"
