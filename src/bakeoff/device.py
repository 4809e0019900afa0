"""The device of a run, chosen and set up once. Only this module and `measure/` name a kind of device."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from bakeoff.errors import UserError

HOST = torch.device("cpu")
GPU = torch.device("cuda")  # any; a run has one with an index
LOGITS_MB = {"cpu": 128.0, "cuda": 1024.0}  # a GPU is idle between small chunks of tokens; a CPU's caches prefer them


def choose_device(name: str, number: int = 0) -> torch.device:
    """The device of that name: `auto` (a GPU, or the CPU where there is none), `cpu`, `cuda` or `cuda:N`.

    `number` is that of the process on this machine, which takes the GPU of this number where the name leaves it open.

    A GPU always has its index, which many functions of torch.cuda require. Allocates no memory on any device. Raises
    UserError for a device that this machine does not have.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = [torch.device("cuda", index) for index in range(count)]
    if number >= count > 0 and name in ("auto", "cuda"):
        raise UserError(
            f"every process needs a GPU of its own, but this machine has {count} for {number + 1} processes; lower "
            "processes, or set device=cpu."
        )
    own = gpus[number : number + 1]
    known = {"auto": own[0] if own else HOST, "cpu": HOST}
    known |= ({"cuda": own[0]} if own else {}) | {str(gpu): gpu for gpu in gpus}
    if name not in known:
        raise UserError(f"device is {name!r}, but this machine has no such device; it may be {', '.join(known)}.")
    return known[name]


def backend() -> str:
    """How torch sends tensors between processes, by their device."""
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by the names in CUDA_VISIBLE_DEVICES or else by their numbers."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(index) for index in range(count)]


_CLAIMED: list[FileLock] = []  # the lock of this process's GPU


def claim_gpu(gpus: list[str], report: Callable[[str], None]) -> None:
    """Locks a free one of these GPUs until this process ends, and hides all others from it; waits where none is free.

    The locks are those of one user on one machine. It must come before CUDA starts, which reads its variable once.
    `report` receives a message when it waits.
    """
    if _CLAIMED:
        return
    folder = Path(tempfile.gettempdir(), f"bakeoff_gpus_{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    locks = {gpu: FileLock(folder / gpu.replace("/", "_")) for gpu in gpus}
    reported = False
    while True:
        for gpu, lock in locks.items():
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            _CLAIMED.append(lock)
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
            return
        if not reported:
            report("waiting for a free GPU")
        reported = True
        time.sleep(1)


def set_up_device(device: torch.device, deterministic: bool, memory_limit_mb: float) -> None:
    """Prepares the process for a run on `device`: frees memory that an earlier run left there and sets the limit.

    deterministic     CUDA computes by algorithms whose results repeat bit for bit, and raises where it has none
    memory_limit_mb   MB (10⁶ bytes) of a GPU that the process may hold, 0: all; on the CPU the ledger enforces it
    """
    # cuDNN's attention can return NaN gradients under an explicit mask (pytorch#196678), and plans for each key length.
    torch.backends.cuda.enable_cudnn_sdp(False)
    # Set for every run: cuBLAS reads it once per process, and a deterministic run may follow another in the same one.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    if device.type == "cuda":
        gc.collect()
        torch.cuda.set_device(device)
        torch.cuda.empty_cache()
        share = min(1.0, memory_limit_mb * 1e6 / memory_bytes(device)) if memory_limit_mb else 1.0
        torch.cuda.set_per_process_memory_fraction(share, device)


def logits_bound(asked: float, device: torch.device) -> float:
    """MB of float32 logits of a chunk of tokens, where 0 asks for what is fast on the device."""
    return asked or LOGITS_MB[device.type]


def memory_bytes(gpu: torch.device) -> int:
    """Bytes of memory that a GPU has."""
    total: int = torch.cuda.get_device_properties(gpu).total_memory
    return total


def device_name(device: torch.device) -> str:
    """Name of the device in tables and tags: a GPU's model, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def describe_device(device: torch.device) -> dict[str, str]:
    """Device of a measurement, its driver and CUDA's version if it is a GPU, and torch's version."""
    about = {"device": device_name(device)}
    if device.type == "cuda":
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found = subprocess.run(query, capture_output=True, text=True).stdout.split() if shutil.which(query[0]) else []
        about |= {"driver": found[0] if found else "unknown", "CUDA": str(torch.version.cuda)}
    return about | {"torch": torch.__version__}


def queued_copy(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on `device`, complete only after `wait_for` has waited for the GPU involved.

    A copy from a GPU goes to page-locked memory, so that many copies are queued and waited for once. torch keeps
    page-locked memory for the next copy, in blocks of a power of two bytes, until the process ends.
    """
    locked = device.type == "cpu" and tensor.device.type == "cuda"
    return torch.empty_like(tensor, device=device, pin_memory=locked).copy_(tensor.detach(), non_blocking=True)


def sent(values: list[int], device: torch.device) -> Tensor:
    """Whole numbers as a tensor on the device, from page-locked memory, so that the host does not wait for a GPU."""
    return queued_copy(torch.tensor(values, dtype=torch.long, pin_memory=device.type == "cuda"), device)


def wait_for(device: torch.device) -> None:
    """Waits until the device has finished everything that is queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error is an allocator's, of torch or of a library below it, or that of a ledger's limit."""
    message = str(error).lower()
    marks = ("can't allocate memory", "out of memory", "alloc_failed")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(mark in message for mark in marks)
