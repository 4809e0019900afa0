"""PPO and GRPO at several group sizes: the page of `critic`, with an answer for each group size."""

from bakeoff.report.pages.critic import plot, table
from bakeoff.report.pages.model_size import verdict

__all__ = ["NOTEBOOK", "plot", "table", "verdict"]
NOTEBOOK = "critic"
