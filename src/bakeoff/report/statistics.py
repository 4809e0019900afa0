"""Small-sample statistics of runs. A run is the unit: seeds are what varies."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats


def mean_interval(values: pd.Series, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean and Student-t interval over seeds; the interval is NaN for fewer than two values."""
    x = values.to_numpy(dtype=float)
    mean = float(x.mean())
    if len(x) < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf(0.5 + confidence / 2, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))
    return mean, mean - half, mean + half


def paired_difference(a: pd.Series, b: pd.Series, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean and interval of a − b over the seeds (index) that both have: the seeds share their prompts."""
    both = pd.concat([a.rename("a"), b.rename("b")], axis=1).dropna()
    return mean_interval(both["a"] - both["b"], confidence)
