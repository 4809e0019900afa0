"""The process that imports scorers once and forks a worker for each connection that it receives.

It ends, and all its workers with it, when the run that started it closes the control socket or ends in any way.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import signal
import socket
import sys
import tempfile
from contextlib import suppress

import numpy as np
import torch

from bakeoff.errors import UserError
from bakeoff.reward.isolation import Failure, Scorer, attempt
from bakeoff.reward.sandbox import die_with_parent, forbid_writing, leave_namespaces, limit_resources


def main(control_fd: int) -> None:
    """Reads the scorers and the workers' memory limit in MB from stdin, then forks a worker for each connection."""
    control = socket.socket(fileno=control_fd)
    scorers, memory_mb = pickle.load(sys.stdin.buffer)
    torch.set_num_threads(1)
    scratch = tempfile.mkdtemp(prefix="bakeoff-scoring-")
    os.environ["TMPDIR"] = tempfile.tempdir = scratch
    workers: set[int] = set()
    while received := socket.recv_fds(control, 1, 1)[1]:
        while workers and (ended := os.waitpid(-1, os.WNOHANG)[0]):
            workers.discard(ended)
        connection = socket.socket(fileno=received[0])
        worker = os.fork()
        if not worker:
            control.close()
            try:
                confined(connection, scorers, memory_mb, scratch)
            finally:
                os._exit(1)
        connection.close()
        workers.add(worker)
    for worker in workers:
        with suppress(ProcessLookupError):
            os.killpg(worker, signal.SIGKILL)
    shutil.rmtree(scratch, ignore_errors=True)


def confined(connection: socket.socket, scorers: dict[str, Scorer], memory_mb: float, scratch: str) -> None:
    """Serves the connection in a sandbox.

    Its first line has the process group, by which the run kills the worker, and the worker's number outside of the PID
    namespace, of which /proc is.
    """
    os.setsid()
    die_with_parent()
    group = os.getpid()
    if leave_namespaces() and (inside := os.fork()):
        connection.close()  # its end is then that of the worker
        os.waitpid(inside, 0)
        return
    die_with_parent()
    forbid_writing(scratch)
    limit_resources(memory_mb)
    serve(connection, scorers, group)


def serve(connection: socket.socket, scorers: dict[str, Scorer], group: int) -> None:
    """Answers each call of each request with a line of JSON: what a worker says is data, never a pickle.

    Every call starts from the generators' state that the request's seed gives, whichever worker it comes to.
    """
    stream = connection.makefile("rwb")

    def say(kind: str, value: object) -> None:
        stream.write(json.dumps([kind, value], default=float).encode() + b"\n")
        stream.flush()

    say("ready", [group, int(os.readlink("/proc/self")) if os.path.exists("/proc/self") else 0])
    while stream.peek(1):
        name, seed, calls = pickle.load(stream)
        for call in calls:
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.default_generator.manual_seed(seed)
            try:
                result = attempt(scorers[name], call)
            except UserError as error:
                say("refused", str(error))
                continue
            say("failed", result.reason) if isinstance(result, Failure) else say("value", result)
