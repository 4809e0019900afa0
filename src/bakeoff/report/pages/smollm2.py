"""The arena's question on a real model: its page, with tasks in the place of regimes."""

from __future__ import annotations

from bakeoff.report.pages.arena import improvement, plot_map, plot_profiles, predictions, score_table, table, verdict

__all__ = ["NOTEBOOK", "improvement", "plot_map", "plot_profiles", "predictions", "score_table", "table", "verdict"]
NOTEBOOK = "arena"
