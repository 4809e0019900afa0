"""What a signal does to a process of a run, and to the processes that it starts."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TOGETHER = 2.0  # seconds between two signals that are one event: Slurm sends a job's twice
GRACE = 5.0  # seconds that a job whose sweep has died may take to save its state


@contextmanager
def shielding() -> Iterator[None]:
    """Processes that start in this context never see Ctrl-C, which this process receives when the context ends.

    So none prints the traceback of an import that Ctrl-C met; this process has to end them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def termination() -> Iterator[list[int]]:
    """Yields the signals received: SIGTERM stops a run after the update in progress, a second one at once.

    So does SIGUSR2 where a launcher handles it. A launcher's own handler is called once the state is saved.
    """
    received: dict[int, float] = {}
    signals: list[int] = []

    def note(number: int, frame: Any) -> None:
        if number in received and time.monotonic() - received[number] > TOGETHER:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        received.setdefault(number, time.monotonic())
        signals.append(number)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    noted = [number for number, handler in handlers.items() if number == signal.SIGTERM or callable(handler)]
    try:
        for number in noted:
            signal.signal(number, note)
    except ValueError:  # not the main thread: the launcher handles signals
        yield signals
        return
    try:
        yield signals
    finally:
        for number in noted:
            signal.signal(number, handlers[number])
        for number, handler in handlers.items():
            if number in received and callable(handler):
                handler(number, None)


@contextmanager
def ends_with(launcher: int) -> Iterator[None]:
    """Ends this process soon after its parent with this process id has died, as a launcher's processes must.

    SIGTERM comes first, upon which a run saves its state.
    """
    over = threading.Event()

    def watch() -> None:
        while os.getppid() == launcher:
            if over.wait(0.5):
                return
        os.kill(os.getpid(), signal.SIGTERM)
        over.wait(GRACE)
        os._exit(128 + signal.SIGTERM)

    if os.getppid() == launcher:
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()
