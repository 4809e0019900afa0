"""The arena's question on a real model: its page, with tasks in the place of regimes."""

from __future__ import annotations

from bakeoff.report.pages.arena import choices_table, improvement, plot_map, plot_profiles, predictions, table, verdict

__all__ = ["NOTEBOOK", "choices_table", "improvement", "plot_map", "plot_profiles", "predictions", "table", "verdict"]
NOTEBOOK = "arena"
