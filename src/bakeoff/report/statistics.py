"""Statistics of few runs. The run is the unit: seeds are the sample."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats
from scipy.optimize import brentq
from scipy.special import expit, logit

CONFIDENCE = 0.95
_confidence: ContextVar[float] = ContextVar("confidence", default=CONFIDENCE)
FEWEST = 5  # seeds, below which a percentile bootstrap covers far less than 95 %: of three values 75 %
RESAMPLES = 2000
POWER = 0.8


def counted(number: int, noun: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{number} {noun if number == 1 else f'{noun}s'}"


@contextmanager
def confidence(level: float) -> Iterator[None]:
    """Makes every interval inside the context hold at this confidence in place of 95 %.

    So a claim, which computes its effect however it likes, can be judged with a correction for the number of claims.
    """
    token = _confidence.set(level)
    try:
        yield
    finally:
        _confidence.reset(token)


def corrected_for(comparisons: int) -> AbstractContextManager[None]:
    """The confidence of one interval among several that hold together in 95 % of cases (Bonferroni).

    Within another correction it is one among the product of both numbers.
    """
    return confidence(1 - (1 - _confidence.get()) / comparisons)


class Estimate(NamedTuple):
    """A value and its 95 % confidence interval: NaN for a single run; without a run the value is NaN too."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan

    @property
    def decimals(self) -> int:
        """The decimals that the interval supports, at most four: the Particle Data Group's rule for its half width.

        Two significant digits of a half width that begins with 100 to 354, else one; without interval three decimals.
        Below zero the last digits before the point are rounded too: −2 is whole hundreds.
        """
        half = (self.high - self.low) / 2
        if not 1e-9 < half < math.inf:
            return 3
        place = math.floor(math.log10(half))
        return min(4, int(half < 3.55 * 10**place) - place)

    def text(self, sign: str = "") -> str:
        """`0.953 [0.929, 0.977]`, or the value alone without an interval; `sign="+"` shows every sign."""
        if not math.isfinite(self.value):
            return "–" if math.isnan(self.value) else f"{self.value:{sign}}".replace("inf", "∞")
        value, low, high = (self.rounded(each, sign) for each in self)
        return value if math.isnan(self.low) else f"{value} [{low}, {high}]"

    def rounded(self, value: float, sign: str = "", digits: int = 0) -> str:
        """A value with as many digits as the interval supports, and at least `digits` significant ones."""
        least = digits - 1 - math.floor(math.log10(abs(value))) if digits and value else self.decimals
        decimals = max(self.decimals, least)
        return f"{round(value, decimals) + 0.0:{sign}.{max(0, decimals)}f}"  # −0 becomes 0


def standard_error(x: Any, step: float = 0.0) -> float:
    """The standard error of a mean of differences, each of two values that are multiples of `step`.

    It is at least that of their rounding, whose variance is 2 · step²/12: seeds whose differences agree to the last
    prompt do so by chance.
    """
    return max(float(stats.sem(x)), rounding(step) / math.sqrt(len(x)))


def rounding(step: float) -> float:
    """The standard deviation of a difference of two values that are rounded to multiples of `step`."""
    return step / math.sqrt(6)


def mean_interval(values: pd.Series, step: float = 0.0) -> Estimate:
    """Mean over seeds with Student's t interval; no interval for fewer than two values, NaN for none.

    `step` is that of `standard_error`; with one, the values are differences of shares, which lie between −1 and 1.
    """
    x = values.to_numpy(dtype=float)
    if len(x) < 2:
        return Estimate(*map(float, x))
    mean, half = float(x.mean()), float(stats.t.ppf(0.5 + _confidence.get() / 2, len(x) - 1) * standard_error(x, step))
    least, most = (-1.0, 1.0) if step else (-math.inf, math.inf)
    return Estimate(mean, max(mean - half, least), min(mean + half, most))


def share_interval(values: pd.Series) -> Estimate:
    """Mean over seeds of shares with Student's t interval on the logit scale, which stays within [0, 1].

    The standard error of the mean's logit is that of the mean over mean · (1 − mean), by the delta method: `logit` of
    `svyciprop` in R's package survey. Where the mean is 0 or 1, so is every share, and the interval is that value.
    """
    mean = mean_interval(values)
    slope = mean.value * (1 - mean.value)
    if not slope > 0 or math.isnan(mean.low):
        return mean
    half, centre = (mean.high - mean.low) / 2 / slope, logit(mean.value)
    return Estimate(mean.value, float(expit(centre - half)), float(expit(centre + half)))


def paired_difference(a: pd.Series, b: pd.Series, step: float = 0.0) -> Estimate:
    """Mean and interval of a − b over the seeds (index) that both have: runs of a seed share start and prompts."""
    return mean_interval((a - b).dropna(), step)


def paired_ratio(a: pd.Series, b: pd.Series) -> Estimate:
    """Geometric mean and interval of a ÷ b over the seeds (index) that both have."""
    logs = paired_difference(pd.Series(np.log(a)), pd.Series(np.log(b)))
    return Estimate(*np.exp(logs).tolist())


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's method (1979): the rate of families with any false rejection."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    stepped = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(stepped, 1)
    return [float(each) for each in corrected]


def paired_p(differences: pd.Series, step: float = 0.0) -> float:
    """The two-sided p of a paired t-test; 1 without a difference, and for fewer than two seeds."""
    x = differences.to_numpy(dtype=float)
    if len(x) < 2 or not x.any():
        return 1.0
    error = standard_error(x, step) if step or np.ptp(x) else 0.0  # sem of equal values is their rounding
    return float(2 * stats.t.sf(abs(x.mean()) / error, len(x) - 1)) if error else 0.0


def equivalent(differences: pd.Series, margin: float, step: float = 0.0) -> bool:
    """Whether two one-sided t-tests at 5 % place the mean within ± margin: its 90 % interval is inside."""
    return equivalence_p(differences, margin, step) < 1 - CONFIDENCE


def equivalence_p(differences: pd.Series, margin: float, step: float = 0.0) -> float:
    """The larger p of two one-sided t-tests that the mean is within ± margin; 1 for fewer than two seeds."""
    x = differences.to_numpy(dtype=float)
    if len(x) < 2:
        return 1.0
    inside, error = margin - abs(x.mean()), standard_error(x, step) if step or np.ptp(x) else 0.0
    return float(stats.t.sf(inside / error, len(x) - 1)) if error else float(inside <= 0)


def pooled_deviation(samples: Iterable[pd.Series]) -> float:
    """The standard deviation within samples of at least two values, their variances weighted by n − 1."""
    variances = [(len(each) - 1, each.var()) for each in samples if len(each) > 1]
    weights = sum(weight for weight, _ in variances)
    return math.sqrt(sum(weight * variance for weight, variance in variances) / weights) if weights else math.nan


def detectable(deviation: float, seeds: int, comparisons: int = 1, step: float = 0.0) -> float:
    """The smallest difference that a two-sided paired t-test at 5 % ÷ comparisons finds with power 0.8.

    `deviation` is that of the paired differences over seeds; infinite for fewer than two seeds. With a `step` the
    values are shares: rounding makes them deviate, and a difference above 1 cannot be, so that it is infinite too.
    """
    if seeds < 2 or math.isnan(deviation):
        return math.inf
    critical = float(stats.t.isf((1 - CONFIDENCE) / 2 / comparisons, seeds - 1))

    def missing(shift: float) -> float:
        """The power that is missing at a difference in standard errors; the opposite tail is negligible."""
        return POWER - float(stats.nct.sf(critical, seeds - 1, shift))

    smallest = float(brentq(missing, 0, 10 * critical)) * max(deviation, rounding(step)) / math.sqrt(seeds)
    return math.inf if step and smallest > 1 else smallest


def seeds_to_detect(difference: float, deviation: float, comparisons: int = 1, step: float = 0.0) -> int:
    """The smallest number of seeds with which `detectable` is at most a difference."""
    enough = 2
    while detectable(deviation, enough, comparisons, step) > difference:
        enough *= 2
    return bisect_left(range(enough), True, 2, key=lambda n: detectable(deviation, n, comparisons, step) <= difference)


# Mean of the middle half; a quarter, rounded down, is left out at each end. Agarwal et al. 2021, arXiv:2108.13264 §4.1.
middle_mean = partial(stats.trim_mean, proportiontocut=0.25)


def interquartile_mean(scores: pd.Series) -> Estimate:
    """Mean of the middle half of the runs, with a percentile bootstrap interval: Agarwal et al. 2021 §4.1 and §4.3.

    All is NaN for fewer than FEWEST runs: too few of them would be left out, and their bootstrap is too narrow.
    """
    if len(scores) < FEWEST:
        return Estimate()
    return stratified_iqm(pd.DataFrame({"regime": "", "score": scores.to_numpy()}))


def probability_of_improvement(a: np.ndarray, b: np.ndarray) -> float:
    """The probability that a run of A is better than one of B, ties counted half: Agarwal et al. 2021 §4.4.

    It is Mann and Whitney's U over the number of pairs.
    """
    return float(stats.mannwhitneyu(a, b, method="asymptotic").statistic / (len(a) * len(b)))


def stratified_iqm(scores: pd.DataFrame) -> Estimate:
    """Interquartile mean of the runs of all regimes (columns regime, seed, score) with stratified bootstrap interval.

    Seeds are drawn with replacement within each regime: Agarwal et al. 2021 (arXiv:2108.13264) §4.3. The interval is
    NaN where a regime has fewer than FEWEST seeds.
    """
    runs = by_regime(scores)
    if not runs:
        return Estimate()
    rng = np.random.default_rng(0)
    every = np.concatenate([resampled(own, rng) for own in runs.values()], axis=1)
    return bootstrapped(middle_mean(every, axis=1), [*runs.values()])


def improvement_over_regimes(a: pd.DataFrame, b: pd.DataFrame) -> Estimate:
    """The mean `probability_of_improvement` of the regimes that both have (columns regime, seed, score).

    Its interval is a stratified bootstrap, as that of `stratified_iqm`: the seeds of A and of B are drawn apart within
    each regime. NaN without a common regime.
    """
    of_a, of_b = by_regime(a), by_regime(b)
    common = [regime for regime in of_a if regime in of_b]
    if not common:
        return Estimate()
    rng, chances = np.random.default_rng(0), []
    for regime in common:
        mine, its = of_a[regime], of_b[regime]
        wins = (mine[:, None] > its) + 0.5 * (mine[:, None] == its)
        rows, columns = (resampled(np.arange(len(own)), rng) for own in (mine, its))
        chances.append(wins[rows[:, :, None], columns[:, None, :]].mean((1, 2)))
    return bootstrapped(np.mean(chances, axis=0), [of[regime] for of in (of_a, of_b) for regime in common])


def by_regime(scores: pd.DataFrame) -> dict[str, np.ndarray]:
    """The scores of each regime's runs."""
    groups = scores.groupby("regime", observed=True)["score"]
    return {str(regime): own.to_numpy(dtype=float) for regime, own in groups}


def resampled(values: np.ndarray, rng: np.random.Generator) -> Any:
    """[1 + RESAMPLES, n]: the values themselves, then as many draws of them with replacement."""
    return np.vstack([values, rng.choice(values, (RESAMPLES, len(values)))])


def bootstrapped(statistic: np.ndarray, strata: list[np.ndarray]) -> Estimate:
    """The first value of a statistic of `resampled` rows, with the percentile interval of the others.

    A draw for which the statistic is NaN is left out. It has no interval where a stratum has fewer than FEWEST values.
    """
    value, drawn = float(statistic[0]), statistic[1:]
    if min(map(len, strata)) < FEWEST:
        return Estimate(value)
    tail = 0.5 - _confidence.get() / 2
    return Estimate(value, *map(float, np.nanquantile(drawn, [tail, 1 - tail])))


def performance_profile(scores: pd.Series, thresholds: np.ndarray) -> np.ndarray:
    """The share of runs whose score is above each threshold: Agarwal et al. 2021 §4.2."""
    return np.asarray(stats.ecdf(scores).sf.evaluate(thresholds))


def ratio_of_means(a: pd.Series, b: pd.Series) -> Estimate:
    """Mean of A ÷ mean of B over the seeds (index) that both have, with interval; for positive values.

    For values that are censored at a budget, whose logarithms have no normal distribution. The interval is Student's t;
    the standard error of the ratio's logarithm is that of A ÷ mean(A) − B ÷ mean(B), paired by seed, by the delta
    method. A percentile bootstrap of ten seeds errs in 2 % of cases where its level promises 0.2 %.
    """
    both = pd.concat([a, b], axis=1, join="inner").dropna()
    shares = both / both.mean()
    centre = math.log(both.iloc[:, 0].mean() / both.iloc[:, 1].mean()) if len(both) else math.nan
    logs = mean_interval(centre + shares.iloc[:, 0] - shares.iloc[:, 1])
    return Estimate(*np.exp(logs).tolist())
