"""The same updates by one process and by two: `python -m tests.together METHOD …`, all of them where none is named."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from bakeoff import processes
from bakeoff.paths import CONF
from tests.commands import PATIENCE_S, SERVER
from tests.conftest import compose, loop_of, update_of

SMALL = [
    *("tuned=none", "sft.steps=0", "task.heldout=4", "batch.prompts=5", "batch.group_size=2", "threads=1"),
    *("measure.kl_sequences=4", "algorithm.optimizer.lr=1e-3", "reward.functions={length: 1.0, verifier: 1.0}"),
    *("reward.length.margin_share=1", "++model.architecture.num_hidden_layers=1"),
]
METHODS = sorted(path.stem for path in (CONF / "algorithm").glob("*.yaml"))
UPDATES = 2
# what a clock or a ledger counts, and a number of exact zeros, which rounding decides
APART = ("time/", "speed/", "memory/", "progress/seconds", "progress/cpu_seconds", "advantage/zero")


def curves(overrides: list[str]) -> dict[str, Tensor]:
    """The metrics of each update, and the weights after the last one, by name; as this process finds them."""
    loop = loop_of(compose(*overrides))
    rows = [update_of(loop) for _ in range(UPDATES)]
    metrics = {name: torch.tensor([row[name] for row in rows]) for name in rows[0] if not name.startswith(APART)}
    trained = loop.learner.trained().items()
    weights = {
        f"{m}/{n}": processes.whole(w.detach()).double().clone() for m, named in trained for n, w in named.items()
    }
    return metrics | weights


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])


def place(rank: int, size: int, port: int) -> dict[str, str]:
    """The environment by which torchrun gives a process its place."""
    values = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    return {name: str(value) for name, value in values.items()}


def member(rank: int, size: int, port: int, cases: list[list[str]], folder: Path) -> None:
    """What process `rank` of a run does: the updates of every case, whose curves it writes."""
    os.environ |= place(rank, size, port)
    torch.set_num_threads(1)
    processes.join()
    torch.save([curves(overrides) for overrides in cases], folder / f"{rank}.pt")
    processes.leave()


def together(cases: list[list[str]], size: int = 2) -> list[list[dict[str, Tensor]]]:
    """The curves of each case by each of `size` processes of one run."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        arguments = [(rank, size, port, cases, Path(folder)) for rank in range(size)]
        started = [SERVER.Process(target=member, args=each) for each in arguments]
        for process in started:
            process.start()
        for process in started:
            process.join(PATIENCE_S)
        assert [process.exitcode for process in started] == [0] * size
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(size)]


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> tuple[float, str]:
    """The largest difference of two curves in one metric or weight, relative to its size, and its name."""
    assert one.keys() == other.keys()

    def relative(name: str) -> float:
        a, b = one[name].double(), other[name].double()
        return float((a - b).norm() / b.norm().clamp(min=0.1))

    return max((relative(name), name) for name in one)


def main() -> None:
    """Prints the largest difference of each method; exit code 1 where one is above 1e-5."""
    methods, worst = sys.argv[1:] or METHODS, 0.0
    cases = [[f"algorithm={method}", *SMALL] for method in methods]
    torch.set_num_threads(1)
    leaders, others = together(cases)
    for method, case, leader, other in zip(methods, cases, leaders, others, strict=True):
        size, name = difference(leader, curves(case))
        apart, _ = difference(other, leader)
        worst = max(worst, size, apart)
        print(f"{method:24}{size:10.1e}  {name}; the processes differ by {apart:.1e}", flush=True)
    print(f"largest relative difference {worst:.1e}")
    raise SystemExit(worst > 1e-5)


if __name__ == "__main__":
    main()
