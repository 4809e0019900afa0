"""Progress of a run: a live view on a terminal, lines elsewhere, and a file that the view of its sweep reads."""

from __future__ import annotations

import json
import os
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.text import Text

from bakeoff.files import replace_text
from bakeoff.terminal import duration

FILE = "progress.json"
ENDED = ("done", "failed", "killed")
HEAD = "done  update  reward  held-out     KL  tokens/s      MB     left"
COMPLETION_LINES = 6  # of a completion that is shown


@dataclass
class Standing:
    """A run after an update, as a person watches it. Fields that are none keep their last value.

    update      number of finished updates
    share       used share of the budget
    reward      mean reward of the update's completions
    failed      share of them that could not be scored
    kl          KL to the start in nats per sequence
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
