"""Entries of a run on their way to a store: on disk in the run's folder until the store has taken them."""

from __future__ import annotations

import json
import math
import os
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from bakeoff.errors import first_line
from bakeoff.files import replace_text

LOG, SENT = "tracking.jsonl", "tracking.sent"  # every entry of a run, and the number of them that its store has
FLUSH_S = 3.0  # seconds between two batches: each is a transaction of some 0.1 s
RETRY = 30.0  # seconds until a store that fails is asked again
MOST = 10**7  # entries of a log, above which a number is damage
Entry = dict[str, Any]  # its content, by kind
NOTHING: Entry = {"tags": {}}  # an entry that changes nothing
LOST: Entry = {"lost": True}  # an entry whose line was damaged


@dataclass
class Receipt:
    """What `tracking.sent` says: the MLflow run that receives the lines of a folder's log, and their number.

    store   address of the run's store, without a password
    """

    run: str = ""
    lines: int = 0
    store: str = ""


@dataclass
class Outbox:
    """What a run logs and its store may lack. A store that fails neither ends nor delays the run.

    Every entry is first a line of `tracking.jsonl`, and `tracking.sent` says how many of them the store has. So
    nothing is lost where the store is locked, away, full or deleted, and a new store gets all of it. Entries wait for
    up to FLUSH_S and go together.

    folder    the run's folder
    run_id    the run's id in the store
    store     address of the store, without a password
    send      sends entries as one, and gets the number of the last; raises whatever the store raises
    report    receives a message when the store fails
    begun     whether an earlier process has logged something of the run
    ended     whether the run has ended; otherwise an unsent end is dropped, since the run continues
    problem   why the store, or the folder, does not take entries; empty where it does
    """

    folder: Path
    run_id: str
    store: str
    send: Callable[[Entry, int], None]
    report: Callable[[str], None]
    begun: bool = False
    ended: bool = False
    problem: str = ""
    _entries: list[Entry] = field(default_factory=list)  # not yet sent
    _unwritten: list[str] = field(default_factory=list)  # lines that the folder lacks
    _number: int = 0  # of all entries
    _sent: int = 0
    _flushed: float = 0.0
    _failed: float = -math.inf

    def __post_init__(self) -> None:
        receipt = read_receipt(self.folder)
        self._sent = receipt.lines if receipt.run == self.run_id else 0
        entries = read_entries(self.folder / LOG)
        entries += [LOST] * (max(self._sent, self.begun) - len(entries))
        self._number, unsent = len(entries), entries[self._sent :]
        self._entries = [NOTHING if "end" in entry and not self.ended else entry for entry in unsent]
        self._remember()

    def __len__(self) -> int:
        """Number of entries that are unsent."""
        return len(self._entries)

    def add(self, entry: Entry) -> None:
        """Takes an entry, which is sent in its turn."""
        self._entries.append(entry)
        self._unwritten.append(as_line(self._number, entry))
        self._number += 1
        if time.monotonic() - self._flushed > FLUSH_S:
            self.flush()

    def flush(self, patience: float = 0.0) -> bool:
        """Writes what waits to the folder and sends it; returns whether the store has everything.

        A store that fails is asked again half a minute later, or as often as `patience` seconds allow.
        """
        self._write()
        deadline = time.monotonic() + patience
        while self._entries and (patience or time.monotonic() - self._failed > RETRY):
            try:
                self._send()
            except Exception as error:  # sqlalchemy, OS, HTTP: whatever the store is made of
                self._failed = time.monotonic()
                self.fails(f"the store {self.store} does not answer ({first_line(error)})", stored=False)
            if not self._entries or time.monotonic() >= deadline:
                break
            time.sleep(1)
        self._flushed = time.monotonic()
        return not self._entries

    def fails(self, problem: str, stored: bool = True) -> None:
        """Reports the first of consecutive problems; entries wait in the folder where they are not `stored`."""
        if not self.problem:
            waiting = "" if stored else f", and unsent entries wait in {self.folder / LOG}"
            self.report(f"{problem}; training continues{waiting}")
        self.problem = problem

    def _write(self) -> None:
        try:
            if self._unwritten:
                with (self.folder / LOG).open("a+b") as log:
                    cut = log.tell() > 0 and log.seek(-1, os.SEEK_END) >= 0 and log.read() != b"\n"  # by a kill
                    log.write((b"\n" * cut) + "".join(f"{line}\n" for line in self._unwritten).encode())
                self._unwritten = []
        except OSError as error:
            self.fails(f"{self.folder / LOG} cannot be written ({error.strerror})")

    def _send(self) -> None:
        while self._entries:
            number, entry = next_entry(self._entries)
            self.send(entry, self._sent + number)
            self._entries = self._entries[number:]
            self._sent += number
            self._remember()
        self.problem = ""

    def _remember(self) -> None:
        with suppress(OSError):  # at worst, entries are sent twice
            receipt = Receipt(self.run_id, self._sent, self.store)
            replace_text(self.folder / SENT, json.dumps(asdict(receipt)))


def next_entry(entries: list[Entry]) -> tuple[int, Entry]:
    """The next thing to send, and the number of entries that it covers: consecutive metrics go together."""
    together = list(takewhile(lambda entry: "metrics" in entry, entries))
    if not together:
        return 1, entries[0]
    return len(together), {"metrics": [point for entry in together for point in entry["metrics"]]}


def as_line(number: int, entry: Entry) -> str:
    """An entry as a line of a log: checksum, number, content."""
    text = f"{number} {json.dumps(entry)}"
    return f"{zlib.crc32(text.encode()):08x} {text}"


def read_entries(path: Path) -> list[Entry]:
    """The entries of a log by their numbers; one whose line is damaged, or was not written whole, is lost."""
    entries: dict[int, Entry] = {}
    with suppress(OSError):
        for line in path.read_text(errors="replace").splitlines():
            checksum, _, text = line.partition(" ")
            if checksum == f"{zlib.crc32(text.encode()):08x}":
                with suppress(ValueError, RecursionError):  # a folder may come from anyone
                    number, _, content = text.partition(" ")
                    entry = json.loads(content)
                    if is_entry(entry) and 0 <= int(number) < MOST:
                        entries[int(number)] = entry
    return [entries.get(number, LOST) for number in range(max(entries, default=-1) + 1)]


def is_entry(value: Any) -> bool:
    """Whether a value read from a log is an entry: metrics, which are sent together, are checked point by point."""
    if not isinstance(value, dict) or not value:
        return False
    points = value.get("metrics", [])
    kinds = (str, int | float, int, int)  # name, value, time, step
    return isinstance(points, list) and all(
        isinstance(point, list) and len(point) == len(kinds) and all(map(isinstance, point, kinds)) for point in points
    )


def read_receipt(folder: Path) -> Receipt:
    """The receipt in a run's folder; an empty one where there is none, or none that can be read."""
    try:
        sent = json.loads((folder / SENT).read_text())
        return Receipt(str(sent["run"]), min(max(int(sent["lines"]), 0), MOST), str(sent.get("store", "")))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return Receipt()
