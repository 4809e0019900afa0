"""Predicted against measured memory of each arm on real models."""

from __future__ import annotations

from functools import partial

from bakeoff.report.memory import plot_at_peak, predictions, predictions_table
from bakeoff.report.study import Study

table, plot = predictions_table, partial(plot_at_peak, by="role")


def verdict(study: Study) -> str:
    """How far the predictions are from the measurement, and where they are furthest."""
    frame = predictions(study)
    if frame.empty:
        return "No run has both a prediction and a measurement."
    worst = frame.iloc[int(frame["error"].abs().argmax())]
    within = (frame["error"].abs() <= 0.05).mean()
    return (
        f"Of {len(frame)} predicted peaks, {within:.0%} are within 5 % of the measurement. The largest error is "
        f"{worst['error']:+.1%}, of {worst['name']} in the phase {worst['phase'].replace('_', ' ')}."
    )
