"""What a signal does to a process of a run, and to the processes that it starts."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

TERMINATED = 128 + signal.SIGTERM  # exit code of a process that SIGTERM ended
TOGETHER = 2.0  # seconds between two signals that are one event: Slurm sends a job's twice
MOMENT = 0.01  # seconds until an ignored interrupt comes again
INTERRUPTED = 130  # exit code after Ctrl-C
GRACE = 5.0  # seconds that a job whose sweep has died may take to save its state

_open_runs = 0  # of this process


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
def reraising_interrupts() -> Iterator[None]:
    """Raises the interrupt or the end by SIGTERM again where a library raised another error in its place.

    As OmegaConf does, whose `finally` fails where an interrupt met what it cleans up, and a user's code may.
    """
    try:
        yield
    except Exception as error:
        chain: list[BaseException] = [error]
        for each in chain:
            chain += [before for before in (each.__cause__, each.__context__) if before and before not in chain]
        for each in chain:
            if ends_process(each):
                raise each from None
        raise


def ends_process(error: BaseException) -> bool:
    """Whether an error is that of Ctrl-C, or of SIGTERM where that ends a process at once."""
    return isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and error.code == TERMINATED)


def terminate(number: int, frame: Any) -> NoReturn:
    """Handles SIGTERM: ends the command as an interrupt does."""
    raise SystemExit(TERMINATED)


@contextmanager
def interrupts(command: str) -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt in this context, but not where it would be lost.

    In an import a library may raise another error in its place, go on without the module, or abort in C++. There
    Ctrl-C ends the process at once, or, while a run is open, as soon as the import is over. An interrupt that meets a
    `__del__` is printed and ignored by Python; it comes again a moment later.
    """
    handler, hook = signal.getsignal(signal.SIGINT), sys.unraisablehook

    def handle(number: int, frame: FrameType | None) -> None:
        if not importing(frame):
            raise KeyboardInterrupt
        if not _open_runs:
            os.write(sys.stderr.fileno(), f"{command}: interrupted.\n".encode())
            os._exit(INTERRUPTED)
        again()

    def unraisable(what: sys.UnraisableHookArgs) -> None:
        again() if issubclass(what.exc_type, KeyboardInterrupt) else hook(what)

    if handler is not signal.default_int_handler:  # of a shell's background job, which ignores it, or of another caller
        yield
        return
    try:
        signal.signal(signal.SIGINT, handle)
        sys.unraisablehook = unraisable
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        sys.unraisablehook = hook


def again() -> None:
    """Interrupts the main thread a moment later, when it has left the function that it is in."""
    timer = threading.Timer(MOMENT, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
    timer.daemon = True
    timer.start()


def importing(frame: FrameType | None) -> bool:
    """Whether a stack, given by its innermost frame, has an import in progress."""
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


@contextmanager
def open_run() -> Iterator[None]:
    """While the context is open, an interrupt must be raised: a run has a state to save, or to report."""
    global _open_runs
    _open_runs += 1
    try:
        yield
    finally:
        _open_runs -= 1


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
        os._exit(TERMINATED)

    if os.getppid() == launcher:
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()
