"""The processes that make one run together: one a GPU, or several on a CPU. Alone, nothing is sent.

Small tensors, such as prompts, rollouts, scores and advantages, are identical on every process. Passes over rows are
shared: each process makes those of its own rows, results are joined and gradients summed. So no method knows of
processes. The leader alone writes, scores and keeps time.
"""

from __future__ import annotations

import os
import pickle
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from bakeoff.device import HOST, backend
from bakeoff.errors import KILLED, UserError, first_line
from bakeoff.rows import concatenate, to_device

T = TypeVar("T")

AGES = timedelta(days=30)  # others wait as long as the leader scores, or makes a start
FAILED = "bakeoff/failed"  # the key under which a process leaves its error to the leader


@dataclass
class Place:
    """A process among those of its run: its number, how many there are, and its number on its machine."""

    rank: int = 0
    size: int = 1
    local: int = 0


@dataclass
class _Joined:
    """What this process has joined: its place, the group in which objects are sent, and the store behind it.

    alone   whether the leader does something while the others wait
    """

    place: Place
    objects: Any
    store: Any
    alone: bool = False


_joined: _Joined | None = None


def place() -> Place:
    """The place that torchrun, a step of srun or `bakeoff processes=N` gives this process by its environment."""
    env = os.environ
    if "RANK" not in env and int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        env["RANK"], env["WORLD_SIZE"] = env["SLURM_PROCID"], env["SLURM_STEP_NUM_TASKS"]
        env["LOCAL_RANK"] = env["SLURM_LOCALID"]
        first = re.sub(r"\[(\d+).*", r"\1", env["SLURM_STEP_NODELIST"].split(",")[0])  # of node[03-05,7]
        env.setdefault("MASTER_ADDR", first)
        env.setdefault("MASTER_PORT", str(20_000 + int(env["SLURM_JOB_ID"]) % 20_000))
    return Place(
        *(int(env.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    )


def launcher() -> int:
    """The process that has started those of the run, with which they end; 0 where this one is alone."""
    return os.getppid() if place().size > 1 else 0


def join() -> None:
    """Meets the other processes of the run, where there are any; waits until all are there."""
    global _joined
    if _joined is None and place().size > 1:
        store, rank, size = next(rendezvous("env://"))
        dist.init_process_group(backend(), store=store, rank=rank, world_size=size)
        _joined = _Joined(place(), dist.new_group(backend="gloo", timeout=AGES), store)


def leave() -> None:
    """Ends the connections."""
    global _joined
    if _joined is not None:
        _joined = None
        with suppress(Exception):  # of processes that have gone
            dist.destroy_process_group()


def size() -> int:
    """Number of processes that share what is done now."""
    return 1 if _joined is None or _joined.alone else _joined.place.size


def rank() -> int:
    """Number of this process."""
    return 0 if _joined is None else _joined.place.rank


def leads() -> bool:
    """Whether this process writes: metrics, files, what a person sees."""
    return rank() == 0


def share(count: int) -> slice:
    """The part of `count` things that this process takes; the parts of all processes, in order, are all things."""
    return slice(0, count) if size() == 1 else slice(count * rank() // size(), count * (rank() + 1) // size())


def every(mine: T) -> list[T]:
    """The values of all processes, in order."""
    if size() == 1:
        return [mine]
    assert _joined is not None
    found: list[T] = [mine] * size()
    dist.all_gather_object(found, mine, group=_joined.objects)
    return found


def joined(parts: list[T], device: torch.device) -> T:
    """The parts of all processes, each of which has those of its rows, as one noun on the device, row after row."""
    if size() == 1:
        return concatenate(parts)
    return to_device(concatenate(list(chain.from_iterable(every(to_device(parts, HOST))))), device)


def led(compute: Callable[[], T]) -> T:
    """The leader's result, for which the others wait."""
    if size() == 1:
        return compute()
    assert _joined is not None
    found: list[Any] = [None]
    if leads():
        _joined.alone = True
        try:
            found = [compute()]
        finally:
            _joined.alone = False
    dist.broadcast_object_list(found, src=0, group=_joined.objects)
    return found[0]  # type: ignore[no-any-return]


def agreed(value: T) -> T:
    """The leader's value."""
    return led(lambda: value)


def whole(tensor: Tensor) -> Tensor:
    """The tensor that the processes hold in parts, or this one where it is whole; every process must ask for it."""
    found: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return found


def own_part(tensor: Tensor) -> Tensor:
    """The part of the tensor that is in this process's memory: all of it where it is whole."""
    found: Tensor = getattr(tensor, "_local_tensor", tensor)
    return found


def add_gradients(parameters: Iterable[Tensor]) -> None:
    """Sums the gradients of all processes: each has that of its rows, with the weights of the whole minibatch."""
    if size() == 1:
        return
    parameters = list(parameters)
    reached = torch.tensor([parameter.grad is not None for parameter in parameters]).int()  # as by rows of one expert
    dist.all_reduce(reached, op=dist.ReduceOp.MAX)
    for parameter in (parameter for parameter, one in zip(parameters, reached.tolist(), strict=True) if one):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)


def send(tensors: Iterable[Tensor]) -> None:
    """Gives the tensors of every process the leader's values."""
    for tensor in tensors if size() > 1 else ():
        dist.broadcast(tensor.detach(), src=0)


def add(tensors: list[Tensor]) -> list[Tensor]:
    """The tensors, each summed over the processes in place."""
    for tensor in tensors if size() > 1 else ():
        dist.all_reduce(tensor)
    return tensors


@contextmanager
def leading() -> Iterator[None]:
    """Raises the error of another process, where it has ended, in the place of that of the lost connection."""
    try:
        yield
    except Exception as error:
        if _joined is None or not is_lost(error):
            raise
        killed = UserError(f"another process of the run {KILLED}.")
        raise left_error(_joined.store) or killed from error


@contextmanager
def following() -> Iterator[None]:
    """Leaves an error of this process to the leader, which reports it, and ends quietly with it."""
    try:
        yield
    except Exception as error:
        if _joined is not None and not is_lost(error):
            with suppress(Exception):  # the leader has gone
                _joined.store.set(FAILED, pickle.dumps(as_sent(error)))
    except (KeyboardInterrupt, SystemExit):
        pass  # the leader has the signal too


def is_lost(error: BaseException) -> bool:
    """Whether an error is that of a connection to a process that has ended."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def as_sent(error: Exception) -> Exception:
    """An error of a process as the leader may raise it: those of a kind that ends a run in a sentence as they are."""
    known = isinstance(error, UserError | ArithmeticError | torch.OutOfMemoryError)
    return error if known else UserError(f"process {rank()} has failed: {type(error).__name__}: {first_line(error)}.")


def left_error(store: Any) -> Exception | None:
    """The error that another process has left, none where it could not."""
    with suppress(Exception):
        for _ in range(30):  # of a tenth of a second: it leaves its error before its connections close
            if store.check([FAILED]):
                error: Exception = pickle.loads(store.get(FAILED))
                return error
            time.sleep(0.1)
    return None
