"""Progress that a person watches: a line for one run, and a table for the jobs of a sweep."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from bakeoff.attribution import KINDS, ROLES, Label
from bakeoff.files import replace_text
from bakeoff.measure.phase import Peak
from bakeoff.measure.work import Operators

FILE = "progress.json"
ENDED = ("done", "failed", "killed")


def duration(seconds: float) -> str:
    """`75` → `1:15`."""
    minutes, rest = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def megabytes(size: float) -> str:
    """Bytes as a person reads them, in 10⁶ or 10⁹: `14.2 MB`, `23.1 GB`."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e10 else f"{size / 1e6:,.1f} MB"


def plain_table(title: str, names: Iterable[str], numbers: Iterable[str] = (), wraps: bool = False) -> Table:
    """A table without lines, of columns of names and then of columns of numbers, whose heads may wrap."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in names:
        table.add_column(column, no_wrap=True)
    for column in numbers:
        table.add_column(column, justify="right", no_wrap=not wraps)
    return table


def ledger_table(peaks: dict[str, Peak], title: str) -> Table:
    """A row a phase: its peak, and what each role holds of each kind there."""
    table = plain_table(title, ("role", "kind"), [phase.replace("_", " ") for phase in peaks], wraps=True)
    for label in (Label(role, kind) for role in ROLES for kind in KINDS):
        sizes = [peak.cells.get(label, 0) for peak in peaks.values()]
        if any(sizes):
            table.add_row(*label, *(megabytes(size) if size else "" for size in sizes))
    table.add_section()
    table.add_row("[bold]peak", "", *(f"[bold]{megabytes(peak.allocated)}" for peak in peaks.values()))
    return table


def cost_table(work: dict[str, Operators], seconds: dict[str, float], title: str, unit: str) -> Table:
    """A row a phase of an update: its floating-point operations, bytes, operators and seconds."""
    table = plain_table(title, ("phase",), ("GFLOP", "GB", "operators", unit))
    for phase, operators in work.items():
        flops = sum(operator.flops * times for operator, times in operators.items())
        moved = sum(operator.bytes * times for operator, times in operators.items())
        launches = sum(operators.values())
        sizes = f"{flops / 1e9:,.1f}", f"{moved / 1e9:,.1f}", f"{launches:,.0f}"
        table.add_row(phase.replace("_", " "), *sizes, f"{seconds[phase]:,.3f}")
    table.add_section()
    table.add_row("[bold]update", "", "", "", f"[bold]{sum(seconds.values()):,.3f}")
    return table


@dataclass
class Standing:
    """A run after an update, as a person watches it. Fields that are none keep their last value.

    update      number of finished updates
    share       used share of the budget
    reward      mean reward of the update's completions
    failed      share of them that could not be scored
    kl          KL to the reference in nats per sequence
    held_out    held-out greedy accuracy
    memory_mb   largest peak of a phase in MB
    """

    update: int
    share: float
    reward: float
    failed: float
    tokens_per_second: float
    kl: float | None = None
    held_out: float | None = None
    memory_mb: float | None = None


@dataclass
class RunProgress:
    """Reports one run: to the terminal unless `quiet`, and always to a file that the sweep's view reads."""

    folder: Path
    name: str
    quiet: bool
    updates: int = 0
    console: Console = field(default_factory=Console)
    _started: float = field(default_factory=time.monotonic)
    _first: float = 0.0
    _printed: float = -1.0
    _unwritten: bool = False
    _last: dict[str, Any] = field(default_factory=dict)

    def report(self, message: str) -> None:
        """Reports a message between the updates."""
        self._write(state=message)
        self.show(f"[dim]{message}[/]", highlight=False, soft_wrap=True)

    def show(self, table: Table | str, **how: Any) -> None:
        """Shows a table or a message, and records nothing; a terminal that is gone, or a full file, ends no run."""
        if self.quiet:
            return
        try:
            self.console.print(table, **how)
        except (OSError, SystemExit):  # the second is rich's, upon a broken pipe
            self.quiet = True
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), sys.stdout.fileno())  # what is in its buffer fails once more at exit

    def begin(self, updates: int, share: float) -> None:
        """Starts the clock of the loop, after this number of updates and with this share of the budget used."""
        self.updates, self._started, self._first = updates, time.monotonic(), share

    def step(self, standing: Standing) -> None:
        """Reports an update."""
        self.updates, share = standing.update, standing.share
        elapsed, done = time.monotonic() - self._started, standing.share - self._first
        left = elapsed / done * (1 - share) if done > 0 else 0.0
        self._last |= {name: value for name, value in vars(standing).items() if value is not None}
        self._last |= {"share": min(share, 1.0), "left": max(left, 0.0)}
        self._write(state="running")
        interval = 0.05 if self.console.is_terminal else 0.1
        if share >= 1 or share >= self._printed + interval:
            self._printed = share
            self.show(self._line(), highlight=False)

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
        failed = f"  failed {last['failed']:.2%}" if last["failed"] else ""
        memory = f"  {last['memory_mb']:.0f} MB" if "memory_mb" in last else ""
        return (
            f"{last['share']:4.0%}  update {last['update']:4d}  reward {last['reward']:.3f}{failed}{held_out}{kl}"
            f"  {last['tokens_per_second']:,.0f} tokens/s{memory}  {duration(last['left'])} left"
        )

    def _write(self, state: str) -> None:
        try:
            replace_text(self.folder / FILE, json.dumps({"name": self.name, "state": state, **self._last}))
        except OSError as error:
            if not self._unwritten:
                self.show(f"{self.folder / FILE} cannot be written ({error.strerror}); the run goes on without it")
            self._unwritten = True


def read(folder: Path) -> dict[str, Any] | None:
    """The last report of a job, none before it has started."""
    try:
        report: dict[str, Any] = json.loads((folder / FILE).read_text())
    except (OSError, ValueError):
        return None
    return report


def has_ended(report: dict[str, Any] | None) -> bool:
    """Whether the job of a report has ended, in success or failure."""
    return report is not None and report["state"] in ENDED


def sweep_table(names: list[str], folders: list[Path], elapsed: float, before: int) -> Table:
    """A row for each job of a sweep, as its folder reports it.

    The time left is estimated from the jobs that ended in the `elapsed` seconds; `before` jobs had ended earlier.
    """
    reports = [read(folder) for folder in folders]
    states = [report["state"] if report else "waiting" for report in reports]
    finished, ended = states.count("done"), sum(state in ENDED for state in states)
    failed, running = ended - finished, len(states) - ended - states.count("waiting")
    title = f"{finished} of {len(names)} jobs done, {running} running" + (f", {failed} failed" if failed else "")
    if before < ended < len(names):
        title += f"; about {duration(elapsed / (ended - before) * (len(names) - ended))} left"
    table = plain_table(title, ("job", "state"), ("done", "reward", "held-out", "KL", "tokens/s", "MB", "left"))
    forms = {"share": ".0%", "reward": ".3f", "held_out": ".3f", "kl": ".2f", "tokens_per_second": ",.0f"}
    forms["memory_mb"] = ".0f"
    for name, state, report in zip(names, states, reports, strict=True):
        values = report or {}
        cells = [format(values[key], form) if values.get(key) is not None else "" for key, form in forms.items()]
        left = duration(values["left"]) if state == "running" and "left" in values else ""
        table.add_row(name, state[:40], *cells, left)
    return table


@contextmanager
def watching(names: list[str], folders: list[Path], console: Console) -> Iterator[None]:
    """Shows the jobs of a sweep while they run: a live table on a terminal, elsewhere a line for each finished job."""
    stop = threading.Event()
    began = time.monotonic()
    ended = {name for name, folder in zip(names, folders, strict=True) if has_ended(read(folder))}

    def watch_table() -> None:
        with Live(console=console, refresh_per_second=2) as live:
            last = False
            while not last:
                last = stop.wait(0.5)
                live.update(sweep_table(names, folders, time.monotonic() - began, len(ended)))

    def watch_lines() -> None:
        waiting, last = dict(zip(names, folders, strict=True)), False
        while not last:
            last = stop.wait(1.0)
            for name, folder in list(waiting.items()):
                report = read(folder)
                if report and has_ended(report):
                    del waiting[name]
                    held_out = report.get("held_out")
                    suffix = f", held-out accuracy {held_out:.3f}" if held_out is not None else ""
                    done = f"{len(names) - len(waiting)}/{len(names)}"
                    console.print(f"{done}  {name}: {report['state']}{suffix}", highlight=False)

    thread = threading.Thread(target=watch_table if console.is_terminal else watch_lines, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)
