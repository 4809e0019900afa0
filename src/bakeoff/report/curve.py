"""Numbers of one learning curve: its area, when it reaches a threshold, and a sigmoid fitted to it."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from scipy.optimize import OptimizeWarning, curve_fit

POINTS = 6  # of a learning curve, below which three parameters are not fitted


def area_under_curve(x: np.ndarray, y: np.ndarray) -> float:
    """The curve's mean height between its first and last x, by trapezoids."""
    return float(np.trapezoid(y, x) / (x[-1] - x[0])) if len(x) > 1 else float(y[0])


def first_at(x: np.ndarray, y: np.ndarray, threshold: float) -> float:
    """The x at which the curve first reaches a threshold, by linear interpolation; NaN if it never does."""
    reached = np.flatnonzero(y >= threshold)
    if not len(reached):
        return math.nan
    around = slice(max(0, reached[0] - 1), reached[0] + 1)
    return float(np.interp(threshold, y[around], x[around]))


def learning_curve(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Asymptote A, middle C and steepness B of the sigmoid y = y₀ + (A − y₀)/(1 + (C/x)^B), fitted by least squares:
    ScaleRL (arXiv:2510.13786) eq. 1.

    y₀ is the first value. All are NaN where it does not fit: fewer than POINTS values, no finite covariance, or an
    asymptote in [0, 1] that its standard error, or a middle that the last x, leaves open.
    """
    *found, error = fitted_sigmoid(x, y)
    asymptote, middle, steepness = found
    return (asymptote, middle, steepness) if error < 0.1 and middle < x[-1] else (math.nan,) * 3


def fitted_sigmoid(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float, float]:
    """The parameters of `learning_curve`, whatever they leave open, and the standard error of the asymptote."""
    if len(x) < POINTS or not y[0] < y.max():
        return (math.nan,) * 4

    def sigmoid(x: np.ndarray, asymptote: float, middle: float, steepness: float) -> Any:
        return y[0] + (asymptote - y[0]) / (1 + (middle / x) ** steepness)

    rises, ends = x > x[0], ([0, 0, 0.1], [1, 10, 20])  # of x over its last value, for a scale that is the fit's own
    guess = [min(max(float(y[-1]), 0.01), 0.99), 0.3, 1.0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OptimizeWarning)
            found, covariance = curve_fit(sigmoid, x[rises] / x[-1], y[rises], guess, bounds=ends)
    except RuntimeError:  # it does not converge
        return (math.nan,) * 4
    asymptote, middle, steepness = map(float, found)
    return asymptote, middle * float(x[-1]), steepness, float(np.sqrt(covariance[0, 0]))
