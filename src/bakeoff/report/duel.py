"""PPO or GRPO, the question that people ask: the two methods of DUEL in every regime that both ran."""

from __future__ import annotations

import pandas as pd

from bakeoff.report.comparisons import Family
from bakeoff.report.naming import enumerated
from bakeoff.report.regimes import regimes, scores, still, wide
from bakeoff.report.statistics import counted
from bakeoff.report.study import SAMPLED, Study

DUEL = ("ppo", "grpo")


def duels(study: Study) -> Family:
    """The comparisons of DUEL in the final sampled accuracy, one of each regime that both ran, decided together.

    Their arms are named `method@regime`.
    """
    a, b = DUEL
    frame = scores(study)
    values = {str(regime): wide(frame, str(regime), "last") for regime in regimes(study).index}
    differences = {
        (f"{a}@{regime}", f"{b}@{regime}"): (own[a] - own[b]).dropna()
        for regime, own in values.items()
        if {a, b} <= set(own)
    }
    return Family(differences, study.margin, study.step(SAMPLED), still(study, frame))


def duel(study: Study) -> pd.DataFrame:
    """A row for each regime that both of DUEL ran: mean scores, the difference in sampled accuracy, the result."""
    a, b = DUEL
    frame, found, rows = scores(study), duels(study), []
    for each in found.comparisons:
        regime = each.a.partition("@")[2]
        means = wide(frame, regime).mean()
        rows.append(
            {"regime": regime, f"score of {a}": f"{means[a]:z.2f}", f"score of {b}": f"{means[b]:z.2f}"}
            | {f"{a} − {b}, sampled accuracy [95 %]": each.change.text("+")}
            | {"result": found.result(each).replace(f"@{regime}", "")}
        )
    return pd.DataFrame(rows)


def answer(study: Study) -> str:
    """The regimes in which one of DUEL is significantly higher, and the number of those in which neither is."""
    found = duels(study).comparisons
    if not found:
        return ""
    parts = []
    for method in DUEL:
        own = [each for each in found if each.higher.partition("@")[0] == method]
        beyond, within = ([each.a.partition("@")[2] for each in own if each.within == near] for near in (False, True))
        parts.append(f"{method} is higher in {enumerated(beyond, 'and') if beyond else 'none'}")
        parts[-1] += f" (by less than {study.margin:g} in {enumerated(within, 'and')})" if within else ""
    return (
        f"{DUEL[0]} or {DUEL[1]}? Of {counted(len(found), 'regime')}, {'; '.join(parts)}; the difference in sampled "
        f"accuracy is not significant in {sum(not each.higher for each in found)} (Holm, "
        f"{counted(len(found), 'comparison')}).\n\n"
    )
