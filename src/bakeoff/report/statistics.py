"""Small-sample statistics of runs. A run is the unit: seeds are what varies."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy import stats


def mean_interval(values: pd.Series, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean and Student-t interval over seeds; the interval is NaN for fewer than two values, the mean for none."""
    x = values.to_numpy(dtype=float)
    mean = float(x.mean()) if len(x) else float("nan")
    if len(x) < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf(0.5 + confidence / 2, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))
    return mean, mean - half, mean + half


def paired_difference(a: pd.Series, b: pd.Series, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean and interval of a − b over the seeds (index) that both have: the seeds share their prompts."""
    both = pd.concat([a.rename("a"), b.rename("b")], axis=1).dropna()
    return mean_interval(both["a"] - both["b"], confidence)


TIE = "they tie"


def told_apart(interval: tuple[float, float, float], a: str, b: str) -> str:
    """What a paired interval of a − b says: that they tie, as they do without an interval, or which is higher."""
    mean, low, high = interval
    return f"{a if mean > 0 else b} is higher" if low > 0 or high < 0 else TIE


def paired_ratio(a: pd.Series, b: pd.Series, confidence: float = 0.95) -> tuple[float, float, float]:
    """Geometric mean and interval of a / b over the seeds (index) that both have: a paired difference of logarithms."""
    mean, low, high = paired_difference(pd.Series(np.log(a)), pd.Series(np.log(b)), confidence)
    return float(np.exp(mean)), float(np.exp(low)), float(np.exp(high))


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """Mean of the middle half of the scores of the last axis, runs of all tasks together: Agarwal et al. 2021
    (arXiv:2108.13264) §4.3.

    A quarter of the number of scores, rounded down, is left out at either end.
    """
    return np.asarray(stats.trim_mean(scores, 0.25, axis=-1))


def stratified_interval(
    strata: Sequence[np.ndarray],
    statistic: Callable[[np.ndarray], np.ndarray] = interquartile_mean,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """A statistic of runs and its percentile-bootstrap interval; runs are drawn anew within each stratum (task).

    Agarwal et al. 2021 §4.1. The statistic is of the last axis. The interval is NaN where a stratum has fewer than two
    runs; of three or so it is too narrow, as any bootstrap's is: say so beside it.
    """
    value = float(statistic(np.concatenate([np.ravel(runs) for runs in strata])))
    if any(len(runs) < 2 for runs in strata):
        return value, float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    drawn = np.concatenate([rng.choice(np.ravel(runs), (resamples, len(runs))) for runs in strata], axis=-1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(statistic(drawn), [tail, 1 - tail])
    return value, float(low), float(high)


def probability_of_improvement(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> float:
    """How often a run of A is better than one of B, ties counted half, mean over tasks: Agarwal et al. 2021 §4.4."""
    shares = []
    for mine, its in zip(a, b, strict=True):
        difference = np.subtract.outer(mine, its)
        shares.append((difference > 0).mean() + 0.5 * (difference == 0).mean())
    return float(np.mean(shares))


def performance_profile(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """The share of runs whose score is above each threshold: Agarwal et al. 2021 §4.2."""
    return np.asarray((np.ravel(scores)[None, :] > thresholds[:, None]).mean(1))


def area_under_curve(x: np.ndarray, y: np.ndarray) -> float:
    """The curve's mean height between its first and last x, by trapezoids."""
    return float(np.trapezoid(y, x) / (x[-1] - x[0])) if len(x) > 1 else float(y[0])


def first_at(x: np.ndarray, y: np.ndarray, threshold: float) -> float:
    """The x at which the curve first reaches a threshold, on a straight line between its points; NaN where never."""
    reached = np.flatnonzero(y >= threshold)
    if not len(reached):
        return float("nan")
    at = int(reached[0])
    if at == 0:
        return float(x[0])
    share = (threshold - y[at - 1]) / (y[at] - y[at - 1])
    return float(x[at - 1] + share * (x[at] - x[at - 1]))
