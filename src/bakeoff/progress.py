"""Progress that a person watches: a line for one run, and a table for the jobs of a sweep."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from bakeoff.attribution import KINDS, ROLES, Label
from bakeoff.measure.phase import Peak

FILE = "progress.json"


def duration(seconds: float) -> str:
    """`75` → `1:15`."""
    minutes, rest = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def megabytes(size: float) -> str:
    """Bytes as a person reads them, in 10⁶ or 10⁹: `14.2 MB`, `23.1 GB`."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e10 else f"{size / 1e6:,.1f} MB"


def ledger_table(peaks: dict[str, Peak], title: str) -> Table:
    """A row a phase: its peak, and what each role holds of each kind there."""
    labels = [Label(role, kind) for role in ROLES for kind in KINDS]
    shown = [label for label in labels if any(peak.cells.get(label) for peak in peaks.values())]
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("role", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    for phase in peaks:
        table.add_column(phase.replace("_", " "), justify="right")
    for label in shown:
        sizes = [peak.cells.get(label, 0) for peak in peaks.values()]
        table.add_row(*label, *(megabytes(size) if size else "" for size in sizes))
    table.add_section()
    table.add_row("[bold]peak", "", *(f"[bold]{megabytes(peak.allocated)}" for peak in peaks.values()))
    return table


@dataclass
class Standing:
    """A run after an update, as a person watches it. Fields that are none keep their last value.

    update              number of finished updates
    share               used share of the budget
    reward              mean reward of the update's completions
    kl                  KL to the reference in nats per sequence
    held_out            held-out greedy accuracy
    memory_mb           largest peak of a phase in MB
    """

    update: int
    share: float
    reward: float
    tokens_per_second: float
    kl: float | None = None
    held_out: float | None = None
    memory_mb: float | None = None


@dataclass
class RunProgress:
    """Reports one run: to the terminal unless `quiet`, and always to a file that the sweep's view reads.

    updates   number of finished updates
    """

    folder: Path
    name: str
    quiet: bool
    updates: int = 0
    console: Console = field(default_factory=Console)
    _started: float = field(default_factory=time.monotonic)
    _first: float = 0.0
    _printed: float = -1.0
    _last: dict[str, Any] = field(default_factory=dict)

    def report(self, message: str) -> None:
        """Reports a message between the updates."""
        self._write(state=message)
        if not self.quiet:
            self.console.print(f"[dim]{message}[/]", highlight=False, soft_wrap=True)

    def show(self, table: Table | str) -> None:
        """Shows a table or a message, and records nothing."""
        if not self.quiet:
            self.console.print(table)

    def begin(self, updates: int, share: float) -> None:
        """Starts the clock of the loop, after this number of updates and with this share of the budget used."""
        self.updates, self._started, self._first = updates, time.monotonic(), share

    def step(self, standing: Standing) -> None:
        """Reports an update."""
        self.updates, share = standing.update, standing.share
        elapsed = time.monotonic() - self._started
        done = share - self._first
        left = elapsed / done * (1 - share) if done > 0 else 0.0
        self._last |= {name: value for name, value in vars(standing).items() if value is not None}
        self._last |= {"share": min(share, 1.0), "left": max(left, 0.0)}
        self._write(state="running")
        interval = 0.05 if self.console.is_terminal else 0.1
        if not self.quiet and (share >= 1 or share >= self._printed + interval):
            self._printed = share
            self.console.print(self._line(), highlight=False)

    def keep(self, **values: Any) -> None:
        """Keeps values in the run's file."""
        self._last |= values

    def end(self, state: str, reason: str = "") -> None:
        """Records the final state, done, failed or killed, and its reason."""
        self._last["reason"] = reason
        self._write(state=state)

    def _line(self) -> str:
        last = self._last
        held_out = f"  held-out {last['held_out']:.3f}" if "held_out" in last else ""
        kl = f"  KL {last['kl']:.2f}" if "kl" in last else ""
        memory = f"  {last['memory_mb']:.0f} MB" if "memory_mb" in last else ""
        return (
            f"{last['share']:4.0%}  update {last['update']:4d}  reward {last['reward']:.3f}{held_out}{kl}"
            f"  {last['tokens_per_second']:,.0f} tokens/s{memory}  {duration(last['left'])} left"
        )

    def _write(self, state: str) -> None:
        temporary = self.folder / f".{FILE}"
        temporary.write_text(json.dumps({"name": self.name, "state": state, **self._last}))
        temporary.replace(self.folder / FILE)


def read(folder: Path) -> dict[str, Any] | None:
    """The last report of a job, none before it has started."""
    try:
        report: dict[str, Any] = json.loads((folder / FILE).read_text())
    except (OSError, ValueError):
        return None
    return report


def has_ended(report: dict[str, Any] | None) -> bool:
    """Whether the job of a report has ended, in success or failure."""
    return report is not None and report["state"] in ("done", "failed", "killed")


def sweep_table(names: list[str], folders: list[Path], elapsed: float = 0.0, before: int = 0) -> Table:
    """A row for each job of a sweep, as its folder reports it.

    The time left is estimated from the jobs that ended in the `elapsed` seconds; `before` jobs had ended earlier.
    """
    reports = [read(folder) for folder in folders]
    states = [report["state"] if report else "waiting" for report in reports]
    finished = sum(state == "done" for state in states)
    failed = sum(state in ("failed", "killed") for state in states)
    running = sum(state not in ("done", "failed", "killed", "waiting") for state in states)
    title = f"{finished} of {len(names)} jobs done, {running} running" + (f", {failed} failed" if failed else "")
    ended = finished + failed - before
    if ended > 0 and ended < len(names) - before:
        title += f"; about {duration(elapsed / ended * (len(names) - before - ended))} left"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in ("job", "state", "done", "reward", "held-out", "KL", "tokens/s", "MB", "left"):
        table.add_column(column, justify="left" if column in ("job", "state") else "right", no_wrap=True)
    for name, state, report in zip(names, states, reports, strict=True):
        report = report or {}

        def cell(key: str, form: str, report: dict[str, Any] = report) -> str:
            return form.format(report[key]) if report.get(key) is not None else ""

        left = duration(report["left"]) if state == "running" and "left" in report else ""
        table.add_row(
            name,
            state[:40],
            cell("share", "{:.0%}"),
            cell("reward", "{:.3f}"),
            cell("held_out", "{:.3f}"),
            cell("kl", "{:.2f}"),
            cell("tokens_per_second", "{:,.0f}"),
            cell("memory_mb", "{:.0f}"),
            left,
        )
    return table


@contextmanager
def watching(names: list[str], folders: list[Path], console: Console) -> Iterator[None]:
    """Shows the jobs of a sweep while they run: a live table on a terminal, elsewhere a line for each finished job."""
    stop = threading.Event()
    began = time.monotonic()
    ended = {name for name, folder in zip(names, folders, strict=True) if has_ended(read(folder))}

    def watch() -> None:
        if console.is_terminal:
            with Live(console=console, refresh_per_second=2) as live:
                while not stop.wait(0.5):
                    live.update(sweep_table(names, folders, time.monotonic() - began, len(ended)))
                live.update(sweep_table(names, folders, time.monotonic() - began, len(ended)))
            return
        reported: set[str] = set()
        while True:
            last = stop.wait(1.0)
            for name, folder in zip(names, folders, strict=True):
                report = read(folder)
                if report and name not in reported and has_ended(report):
                    reported.add(name)
                    held_out = report.get("held_out")
                    suffix = f", held-out accuracy {held_out:.3f}" if held_out is not None else ""
                    console.print(f"{len(reported)}/{len(names)}  {name}: {report['state']}{suffix}", highlight=False)
            if last:
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)
