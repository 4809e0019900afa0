"""The tasks, by the name in `task=NAME`. Each is a class beside `task.py`, which states what a task is."""

from __future__ import annotations

from bakeoff.task.dataset import Dataset
from bakeoff.task.gym import ReasoningGym
from bakeoff.task.largest import Largest
from bakeoff.task.sort import Sort
from bakeoff.task.sort_turns import SortTurns
from bakeoff.task.task import Task

TASKS: dict[str, type[Task]] = {
    **{"sort": Sort, "sort_turns": SortTurns, "largest": Largest},
    **{"reasoning_gym": ReasoningGym, "dataset": Dataset},
}
