"""Progress that a person watches: of one run a live view or lines, of a sweep a table of its jobs. 80 columns do."""

from __future__ import annotations

import json
import os
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from bakeoff.attribution import KINDS, ROLES, Label
from bakeoff.files import replace_text
from bakeoff.measure.phase import Peak
from bakeoff.measure.work import Operators
from bakeoff.terminal import Words

FILE = "progress.json"
ENDED = ("done", "failed", "killed")
HEAD = "done  update  reward  held-out     KL  tokens/s      MB     left"
WIDE = 100  # columns of a terminal that shows the memory of a job too
COMPLETION_LINES = 6  # of a completion that is shown


def duration(seconds: float) -> str:
    """`75` → `1:15`."""
    minutes, rest = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def megabytes(size: float) -> str:
    """Bytes as a person reads them, in 10⁶ or 10⁹: `14.2 MB`, `23.1 GB`."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e10 else f"{size / 1e6:,.1f} MB"


def plain_table(title: str, names: Iterable[str], numbers: Iterable[str] = ()) -> Table:
    """A table without lines, of columns of names and then of columns of numbers."""
    columns, numbered = list(names), list(numbers)
    table = Words(title, heads=len(columns) if numbered else 1)
    for column in columns:
        table.add_column(column)
    for column in numbered:
        table.add_column(column, justify="right")
    return table


def ledger_table(peaks: dict[str, Peak], title: str) -> Table:
    """A row a phase: its peak, and what each role holds of each kind there."""
    table = plain_table(title, ("role", "kind"), [phase.replace("_", " ") for phase in peaks])
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
    sample      a prompt and its completion, where they are to be shown
    """

    update: int
    share: float
    reward: float
    failed: float
    tokens_per_second: float
    kl: float | None = None
    held_out: float | None = None
    memory_mb: float | None = None
    sample: str | None = None


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
    _sample: str = ""
    _live: Live | None = None

    def report(self, message: str) -> None:
        """Reports a message between the updates."""
        self._write(state=message)
        self.show(Text(message, style="dim"), soft_wrap=True)

    def show(self, table: RenderableType, **how: Any) -> None:
        """Shows a table, or a text as it stands, and records nothing; a terminal that is gone or full ends no run."""
        shown = Text(table) if isinstance(table, str) else table
        self._draw(lambda: self.console.print(shown, **how))

    def _draw(self, drawing: Callable[[], None]) -> None:
        if self.quiet:
            return
        try:
            drawing()
        except (OSError, SystemExit):  # the second is rich's, upon a broken pipe
            self.quiet = True
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), sys.stdout.fileno())  # what is in its buffer fails once more at exit

    def begin(self, updates: int, share: float) -> None:
        """Starts the clock of the loop, after this number of updates and with this share of the budget used."""
        self.updates, self._started, self._first = updates, time.monotonic(), share
        self.show(Text(HEAD, style="dim"))
        if self.console.is_terminal and not self.quiet:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._draw(self._live.start)

    def step(self, standing: Standing) -> None:
        """Reports an update."""
        self.updates, share = standing.update, standing.share
        elapsed, done = time.monotonic() - self._started, standing.share - self._first
        left = elapsed / done * (1 - share) if done > 0 else 0.0
        self._last |= {k: v for k, v in vars(standing).items() if v is not None and k != "sample"}
        self._last |= {"share": min(share, 1.0), "left": max(left, 0.0)}
        self._sample = standing.sample or ""
        self._write(state="running")
        if share >= 1 or share >= self._printed + 0.1:
            self._printed = share
            self.show(self._line())
            if self._sample and self._live is None:
                self.show(shortened(self._sample, self.console.width))
        if self._live is not None:
            live, view = self._live, self._view()
            self._draw(lambda: live.update(view, refresh=True))

    def keep(self, **values: Any) -> None:
        """Keeps values in the run's file."""
        self._last |= values

    def end(self, state: str, reason: str = "") -> None:
        """Records the final state, done, failed or killed, and its reason."""
        if self._live is not None:
            self._draw(self._live.stop)
            self._live = None
        self._last["reason"] = reason
        self._write(state=state)

    def _line(self) -> str:
        """The last update below `HEAD`, in at most 79 columns."""
        last = self._last
        forms = {
            "share": (4, ".0%"),
            "update": (6, "d"),
            "reward": (6, ".3f"),
            "held_out": (8, ".3f"),
            "kl": (5, ".2f"),
        }
        forms |= {"tokens_per_second": (8, ",.0f"), "memory_mb": (6, ",.0f")}
        shown = [format(last[key], form).rjust(w) if key in last else " " * w for key, (w, form) in forms.items()]
        failed = f"  {last['failed']:.1%} failed" if last["failed"] else ""
        return f"{'  '.join(shown)}  {duration(last['left']):>7}{failed}"

    def _view(self) -> Group:
        """The live view: the job, a bar, the last update, and a completion where it is to be shown."""
        bar = ProgressBar(total=1.0, completed=self._last["share"], width=min(self.console.width, 80) - 1)
        title = Text(f"{self.name}: {duration(self._last['left'])} left", no_wrap=True, overflow="ellipsis")
        parts: list[RenderableType] = [title, Padding(bar, 0), Text(HEAD, style="dim"), Text(self._line())]
        return Group(*parts, *([shortened(self._sample, self.console.width)] if self._sample else []))

    def _write(self, state: str) -> None:
        try:
            replace_text(self.folder / FILE, json.dumps({"name": self.name, "state": state, **self._last}))
        except OSError as error:
            if not self._unwritten:
                self.show(f"{self.folder / FILE} cannot be written ({error.strerror}); the run continues without it")
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


def shortened(text: str, width: int) -> Text:
    """A prompt and its completion on a few lines of a terminal; control characters of theirs do nothing there."""
    lines = [line for part in text.splitlines() for line in textwrap.wrap(part, width - 3) or [""]]
    kept = lines[:COMPLETION_LINES] + (["…"] if len(lines) > COMPLETION_LINES else [])
    return Text("\n".join(f"  {''.join(c if c.isprintable() else '·' for c in line)}" for line in kept), style="cyan")


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
    title += f", {ended - finished} failed" if ended > finished else ""
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
