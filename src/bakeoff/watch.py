"""The view of a sweep while its jobs run: a table on a terminal, elsewhere a line for each job that ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bakeoff.progress import ENDED, has_ended, read
from bakeoff.terminal import duration

WIDE = 100  # columns of a terminal that shows the memory of a job too


@dataclass
class Row:
    """A job of a sweep as its view shows it: its number, its name, and its report, none before it starts."""

    number: str
    name: str
    report: dict[str, Any] | None

    @property
    def state(self) -> str:
        """waiting, starting, a share of the budget while it runs, ending, then done, failed or killed."""
        if self.report is None:
            return "waiting"
        if self.report["state"] == "running":
            return f"{self.report['share']:.0%}"
        begun = "ending" if "share" in self.report else "starting"
        return str(self.report["state"]) if has_ended(self.report) else begun


def rows_of(names: list[str], folders: list[Path]) -> list[Row]:
    """The rows of a sweep's jobs; a job that has started names itself, by the values that a search chose too."""
    reports = [read(folder) for folder in folders]
    return [
        Row(folder.name, (report or {}).get("name") or name, report)
        for name, folder, report in zip(names, folders, reports, strict=True)
    ]


def sweep_table(rows: list[Row], elapsed: float, before: int, width: int, height: int) -> Table:
    """A row for each job of a sweep that fits on a screen: those that run, then those that ended last, then the rest.

    The time left is estimated from the jobs that ended in the `elapsed` seconds; `before` jobs had ended earlier.
    """
    finished, ended = (sum(row.state in states for row in rows) for states in (("done",), ENDED))
    waiting = sum(row.report is None for row in rows)
    title = f"{finished} of {len(rows)} jobs done, {len(rows) - ended - waiting} running"
    for state in ("failed", "killed"):
        count = sum(row.state == state for row in rows)
        title += f", {count} {state}" if count else ""
    if before < ended < len(rows):
        title += f"; about {duration(elapsed / (ended - before) * (len(rows) - ended))} left"
    forms = {"reward": ".3f", "held_out": ".3f", "kl": ".2f", "tokens_per_second": ",.0f"}
    heads = ["reward", "held-out", "KL", "tokens/s"]
    if width >= WIDE:
        forms["memory_mb"] = ",.0f"
        heads.append("MB")
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("job", justify="right", no_wrap=True)
    table.add_column("run", no_wrap=True, overflow="ellipsis", max_width=max(width - 47 - 7 * (width >= WIDE), 10))
    for head in ("state", *heads, "left"):
        table.add_column(head, justify="right", no_wrap=True)
    room = max(height - 5, 3)
    order = sorted(rows, key=lambda row: (row.report is None, has_ended(row.report)))
    shown = rows if len(rows) <= room else [row for row in rows if row in order[:room]]
    for row in shown:
        values = row.report or {}
        cells = [format(values[key], form) if values.get(key) is not None else "" for key, form in forms.items()]
        left = duration(values["left"]) if values.get("state") == "running" else ""
        table.add_row(row.number, Text(row.name), row.state, *cells, left)
    if len(shown) < len(rows):
        table.caption, table.caption_justify = f"{len(rows) - len(shown)} more jobs", "left"
    return table


@contextmanager
def watching(names: list[str], folders: list[Path], console: Console) -> Iterator[None]:
    """Shows the jobs of a sweep while they run: a live table on a terminal, elsewhere a line for each finished job."""
    stop = threading.Event()
    began = time.monotonic()
    before = sum(has_ended(read(folder)) for folder in folders)

    def table(height: int) -> Table:
        return sweep_table(rows_of(names, folders), time.monotonic() - began, before, console.width, height)

    def watch_table() -> None:
        with Live(console=console, refresh_per_second=2, transient=True) as live:
            while not stop.wait(0.5):
                live.update(table(console.height))
        console.print(table(len(names) + 5))

    def watch_lines() -> None:
        ended: set[str] = set()
        last = False
        while not last:
            last = stop.wait(1.0)
            for row in rows_of(names, folders):
                if not has_ended(row.report):
                    ended.discard(row.number)  # Slurm and Ray run a job again that they have killed
                elif row.report and row.number not in ended:
                    ended.add(row.number)
                    held_out = row.report.get("held_out")
                    suffix = f", held-out accuracy {held_out:.3f}" if held_out is not None else ""
                    done = f"{len(ended)}/{len(names)}"
                    console.print(Text(f"{done}  job {row.number}  {row.name}: {row.state}{suffix}"))

    thread = threading.Thread(target=watch_table if console.is_terminal else watch_lines, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)
