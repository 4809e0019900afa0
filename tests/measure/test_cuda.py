"""What is done with the figures of CUDA's allocator, which a few lines play: no GPU is needed, and none is measured."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bakeoff.attribution import Label
from bakeoff.errors import UserError
from bakeoff.job import bound_memory
from bakeoff.measure.phase import Phases
from bakeoff.measure.statistics import peak_megabytes
from bakeoff.run import followed
from tests.conftest import compose, run_of

CUDA = torch.device("cuda")


class Allocator:
    """Counts as the caching allocator does: a peak since the last reset, and what it holds from the device."""

    def __init__(self, monkeypatch):
        self.live = self.peak = self.reserved = 0
        self.calls = []
        for name, value in {
            "synchronize": lambda device: None,
            "max_memory_allocated": lambda device: self.peak,
            "max_memory_reserved": lambda device: self.reserved,
            "reset_peak_memory_stats": self.reset,
            "empty_cache": lambda: self.calls.append("empty_cache"),
            "get_device_properties": lambda device: SimpleNamespace(total_memory=80e9),
            "set_per_process_memory_fraction": lambda share, device: self.calls.append(share),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def reset(self, device):
        self.peak = self.live

    def take(self, size):
        self.live += size
        self.peak = max(self.peak, self.live)
        self.reserved = max(self.reserved, 2 * self.live)


@pytest.fixture
def allocator(monkeypatch):
    return Allocator(monkeypatch)


def test_each_phase_has_the_allocators_peak_since_its_own_beginning(allocator):
    phases = Phases(CUDA)
    allocator.take(1_000_000)  # weights
    with phases("rollout"):
        allocator.take(5_000_000)
        allocator.take(-5_000_000)
    with phases("actor_update"):
        allocator.take(2_000_000)
        with phases("offload"):
            allocator.take(500_000)
            allocator.take(-2_500_000)
    peaks = phases.take().peaks
    assert {name: peak.allocated for name, peak in peaks.items()} == {
        "rollout": 6_000_000,
        "actor_update": 3_000_000,
        "offload": 3_500_000,
    }
    assert peaks["actor_update"].reserved == 12_000_000, "the allocator gives nothing back by itself"


def test_what_no_tensor_explains_is_the_remainder(allocator):
    phases = Phases(CUDA)
    weight = torch.zeros(250_000)
    allocator.take(1_000_000)
    with phases.following([(weight, Label("actor", "parameters"))]), phases("rollout"):
        allocator.take(40_000)  # a library's workspace
    metrics = peak_megabytes(phases.take().peaks)
    assert metrics["memory/rollout_mb"] == 1.04
    assert metrics["memory/rollout/actor_parameters_mb"] == 1
    assert metrics["memory/rollout/remainder_mb"] == pytest.approx(0.04)


def test_a_run_begins_with_an_empty_cache_and_its_limit(allocator):
    bound_memory(compose("memory_limit_mb=20000"), CUDA)
    bound_memory(compose(), CUDA)
    assert allocator.calls == ["empty_cache", 0.25, "empty_cache", 1.0]


def test_a_snapshot_is_of_a_gpu():
    with pytest.raises(UserError, match=r"memory_snapshot is true, but the device is cpu"):
        bound_memory(compose("measure.memory_snapshot=true"), torch.device("cpu"))


def test_the_snapshot_is_kept_where_memory_runs_out(allocator, monkeypatch, tmp_path):
    recorded = []
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda enabled="all": recorded.append(enabled))
    monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", lambda path: Path(path).write_bytes(b"blocks"))
    run = run_of(compose("measure.memory_snapshot=true"), tmp_path)
    run.phases.device, artifacts = CUDA, []
    run.tracker.artifact = artifacts.append
    with pytest.raises(torch.OutOfMemoryError), followed(run), run.phases("rollout"):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert recorded == ["all", None], "recording ends with the update"
    assert [path.read_bytes() for path in artifacts] == [b"blocks"]
    assert run.phases.failed == "rollout"
