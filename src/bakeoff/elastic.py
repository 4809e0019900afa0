"""Starts the processes of a run on this machine through torch's elastic launcher, as torchrun does."""

from __future__ import annotations

import logging
import math
import os
import secrets
import signal
import sys
import tempfile
from pathlib import Path

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from bakeoff.config import Config, Mode
from bakeoff.errors import KILLED, UserError
from bakeoff.processes import place
from bakeoff.progress import read

PATIENCE = 600  # seconds that processes may take to save their state after a signal


def starts_processes(config: Config) -> bool:
    """Whether a run is to be made by processes that nobody has started yet."""
    return config.processes > 1 and place().size == 1 and config.mode is not Mode.predict


def launched(config: Config, folder: Path, arguments: list[str]) -> float:
    """The result of the run in a folder that `bakeoff` with these arguments makes in its number of processes.

    Raises SystemExit with the code of the first process, or with that of a signal; UserError where it was killed.
    """
    processes = config.processes
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    print(f"starting {processes} processes", flush=True)
    with tempfile.TemporaryDirectory(prefix="bakeoff_") as logs:
        how = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=secrets.token_hex(4),
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=logs, local_ranks_filter={0}),
            shutdown_timeout=PATIENCE,
        )
        try:
            elastic_launch(how, sys.executable)("-m", "bakeoff", *arguments)
        except SignalException as error:
            raise SystemExit(128 + error.sigval) from None
        except ChildFailedError as error:
            raise ended(error) from None
    last = read(folder) or {}
    return float(last.get("result", math.nan))


def ended(error: ChildFailedError) -> BaseException:
    """The error that ends this process: the leader's exit code, or the end of another process."""
    leader = error.failures.get(0)
    if leader is not None and leader.exitcode > 0:
        return SystemExit(leader.exitcode)
    number, failure = error.get_first_failure()
    if failure.exitcode >= 0:
        return UserError(f"process {number} of the run ended with exit code {failure.exitcode}.")
    name = signal.Signals(-failure.exitcode).name
    return UserError(f"process {number} of the run {KILLED} ({name}).")
