"""Calls of scorers: in this process, or in workers with limits, where a failed call loses only its own result."""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import torch

from bakeoff.errors import UserError
from bakeoff.signals import reraising_interrupts
from bakeoff.user_code import raised

Scorer = Callable[..., Any]

WORKERS = 4  # at most: scorers are quick, and every process of a sweep has its own
START_S = 120.0  # time in which a worker must start, imports included
REPLY_BYTES = 64 * 1024**2
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}


@dataclass
class Failure:
    """A call without a result; reason: `raised KeyError: 'level' (rewards.py:12)`, or the like."""

    reason: str


class Lost(Exception):
    """A worker that gives no answer, and why."""


def attempt(scorer: Scorer, call: tuple[Any, ...]) -> Any:
    """The result of a call, or its Failure where it raises; UserError, for an invalid result, and an interrupt pass.

    Settings of torch are afterwards what they were, and a process that the scorer forked ends here.
    """
    process = os.getpid()
    try:
        with kept_settings(), reraising_interrupts():
            return scorer(*call)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        return Failure(raised(error))
    finally:
        if os.getpid() != process:
            os._exit(0)


@contextmanager
def kept_settings() -> Iterator[None]:
    """Restores torch's default dtype and device and its gradient mode, in which the run computes too."""
    dtype, device, gradients = torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(gradients)
        if torch.get_default_device() != device:
            torch.set_default_device(device)


class Workers:
    """Processes that call scorers, by name, for one run; they start with the first call and end with this object.

    A process imports the scorers once and forks the workers (see worker.py), so that one which was killed is replaced
    in milliseconds. Scorers must be picklable.
    """

    def __init__(self, scorers: dict[str, Scorer], memory_mb: float) -> None:
        self._control, theirs = socket.socketpair()
        code = f"import sys; sys.path[:] = {sys.path}; from bakeoff.reward.worker import main; main({theirs.fileno()})"
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=2,  # what a scorer prints is no output of the command
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the run, which ends its workers
                env={"PYTHONHASHSEED": "0", **os.environ, **ONE_THREAD},
            )
        weakref.finalize(self, end, process, self._control)
        assert process.stdin is not None
        with suppress(BrokenPipeError), process.stdin as stdin:  # the first worker reports that it did not start
            pickle.dump((scorers, memory_mb), stdin)
        self._workers: list[Worker | None] = [None] * min(WORKERS, os.cpu_count() or 1)

    def map(self, name: str, calls: Sequence[tuple[Any, ...]], seconds: float, seed: int, spread: bool) -> list[Any]:
        """The result of each call of a scorer, or its Failure, in order; raises UserError for an invalid result.

        A call has `seconds` and starts from generators with `seed`. Calls are spread over the workers, or all come to
        the first one, which keeps a function's state.
        """
        share = ceil(len(calls) / len(self._workers)) if spread else len(calls)
        parts = [calls[at : at + share] for at in range(0, len(calls), share or 1)]
        with ThreadPoolExecutor(len(self._workers)) as threads:
            found = threads.map(lambda index: self._serial(index, name, parts[index], seconds, seed), range(len(parts)))
            return [result for part in found for result in part]

    def _serial(self, index: int, name: str, calls: Sequence[Any], seconds: float, seed: int) -> list[Any]:
        """Results of calls by one worker, which is replaced as often as it is lost."""
        results: list[Any] = []
        while len(results) < len(calls):
            worker = self._workers[index] or Worker(self._control)
            self._workers[index] = None  # until it has answered every call
            try:
                worker.ask((name, seed, calls[len(results) :]), seconds)
                while len(results) < len(calls):
                    results.append(worker.answer(seconds))
                self._workers[index] = worker
            except Lost as lost:
                results.append(Failure(str(lost)))
            finally:
                if self._workers[index] is None:
                    worker.kill()
        return results


class Worker:
    """The run's end of the connection to one worker."""

    def __init__(self, control: socket.socket) -> None:
        self._socket, theirs = socket.socketpair()
        self._received = b""
        try:
            with theirs:
                socket.send_fds(control, [b"+"], [theirs.fileno()])
            self._pid = 0
            self._group, self._pid = self.answer(START_S)
        except (Lost, OSError) as error:
            raise UserError(
                "the process that calls scorers did not start; reward.isolated=false calls them in the run's process."
            ) from error

    def ask(self, request: tuple[Any, ...], seconds: float) -> None:
        """Sends a request; raises Lost where the worker has ended."""
        self._socket.settimeout(seconds)
        try:
            self._socket.sendall(pickle.dumps(request))
        except OSError as error:
            raise Lost("ended its process") from error

    def answer(self, seconds: float) -> Any:
        """The next answer: a result or its Failure; raises UserError for an invalid result.

        Raises Lost after `seconds`, which a worker that waits for a busy processor gets in full: otherwise the load of
        the machine would decide on scores.
        """
        began = processor_time(self._pid)[0] if b"\n" not in self._received else 0.0
        deadline = time.monotonic() + seconds
        while b"\n" not in self._received:
            try:
                self._socket.settimeout(max(deadline - time.monotonic(), 1e-6))
                part = self._socket.recv(REPLY_BYTES)
            except TimeoutError as error:
                now, ready_to_run = processor_time(self._pid)
                if now - began >= 0.9 * seconds or not ready_to_run:
                    raise Lost(f"took more than {seconds:g} s") from error
                deadline = time.monotonic() + seconds - (now - began)
                continue
            except OSError:
                part = b""
            if not part or len(self._received) > REPLY_BYTES:
                raise Lost("ended its process")
            self._received += part
        line, _, self._received = self._received.partition(b"\n")
        try:
            kind, value = json.loads(line)
        except (ValueError, TypeError) as error:
            raise Lost("answered what is no answer") from error
        if kind == "refused":
            raise UserError(value)
        return Failure(value) if kind == "failed" else value

    def kill(self) -> None:
        """Ends the worker and all processes that it started."""
        self._socket.close()
        with suppress(ProcessLookupError):
            os.killpg(self._group, signal.SIGKILL)


def processor_time(pid: int) -> tuple[float, bool]:
    """Seconds of the processor that a process had, and whether it wants more; (0, False) where there is no /proc."""
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0, False
    return (int(numbers[10]) + int(numbers[11])) / os.sysconf("SC_CLK_TCK"), state == "R"


def end(process: subprocess.Popen[bytes], control: socket.socket) -> None:
    """Ends the parent process of the workers, which ends them."""
    control.close()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
