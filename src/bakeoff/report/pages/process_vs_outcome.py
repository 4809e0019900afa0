"""Step scores against a score for the answer: the page of `methods`."""

from bakeoff.report.pages.methods import table, verdict

__all__ = ["NOTEBOOK", "table", "verdict"]
NOTEBOOK = "methods"
