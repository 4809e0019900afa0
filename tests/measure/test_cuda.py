"""Statistics and settings of CUDA's allocator, on a virtual GPU whose allocator counts real tensors."""

import pytest
import torch

from bakeoff.attribution import Label
from bakeoff.device import choose_device, device_name, set_up_device
from bakeoff.errors import UserError
from bakeoff.measure.phase import Phases
from bakeoff.metrics import peak_metrics
from bakeoff.run import traced
from tests.conftest import compose, run_of
from tests.virtual_gpu import GPU, HOST, virtual_gpu


def megabytes(size: float) -> torch.Tensor:
    """A tensor of `size` MB (10⁶ bytes) on the GPU, which the allocator rounds up to a block."""
    return torch.zeros(int(size * 250_000), device=GPU)


def test_auto_chooses_the_gpu_if_there_is_one_and_a_missing_device_is_refused():
    assert choose_device("auto") == HOST
    with virtual_gpu():
        assert [choose_device(name) for name in ("auto", "cuda", "cuda:0")] == [GPU] * 3
        assert choose_device("cpu") == HOST
        assert device_name(choose_device("auto")) == "virtual GPU"
    with pytest.raises(UserError, match="device is 'cuda', but this machine has no such device; it may be auto, cpu"):
        choose_device("cuda")
    with virtual_gpu(), pytest.raises(UserError, match=r"device is 'cuda:1'.*it may be auto, cpu, cuda, cuda:0"):
        choose_device("cuda:1")


def test_the_peak_of_a_phase_is_the_allocators_since_the_phase_began():
    with virtual_gpu():
        phases = Phases(GPU)
        weights = megabytes(1)
        with phases("rollout"):
            megabytes(5)
        with phases("actor_update"):
            held = megabytes(2)
            with phases("offload"):
                megabytes(0.5)
                del held
        peaks = phases.take().peaks
    sizes = {name: round(peak.allocated / 1e6, 2) for name, peak in peaks.items()}
    assert sizes == {"rollout": 6.0, "actor_update": 3.0, "offload": 3.5}
    assert peaks["actor_update"].reserved >= 6e6, "the allocator returns no reserved memory by itself"
    assert weights.sum() == 0


def test_the_remainder_is_the_allocated_memory_that_no_tensor_explains():
    with virtual_gpu():
        phases = Phases(GPU)
        weight, workspace = megabytes(1.024), megabytes(0.0512)
        with phases.tracing([(weight, Label("actor", "parameters"))]), phases("rollout"):
            torch.zeros(10)  # in the host's memory, so not counted
        metrics = peak_metrics(phases.take().peaks)
    assert metrics["memory/rollout/actor_parameters_mb"] == 1.024
    assert metrics["memory/rollout/remainder_mb"] == pytest.approx(0.0512)
    assert metrics["memory/rollout_mb"] == pytest.approx(1.0752)
    assert workspace.sum() == 0


def test_setting_up_a_gpu_empties_its_cache_and_sets_the_memory_limit():
    """torch.cuda's own functions run, and they refuse a device without an index."""
    with virtual_gpu() as gpu:
        set_up_device(GPU, deterministic=False, memory_limit_mb=20_000)
        set_up_device(choose_device("cuda"), deterministic=True, memory_limit_mb=0)
        assert torch.are_deterministic_algorithms_enabled()
        set_up_device(GPU, deterministic=False, memory_limit_mb=0)
        assert not torch.are_deterministic_algorithms_enabled()
        with pytest.raises(ValueError, match="specified index"):
            torch.cuda.set_per_process_memory_fraction(1.0, torch.device("cuda"))
    assert [arguments[0] for name, arguments in gpu.calls if name == "_cuda_setMemoryFraction"] == [0.25, 1.0, 1.0]
    assert [name for name, _ in gpu.calls].count("_cuda_emptyCache") == 3
    assert not torch.backends.cuda.cudnn_sdp_enabled(), "its gradients under a mask can be NaN"


def test_a_memory_snapshot_of_the_cpu_is_refused():
    with pytest.raises(UserError, match=r"memory_snapshot is true, but the device is cpu"):
        compose("measure.memory_snapshot=true", "device=cpu")


def test_the_snapshot_is_saved_if_memory_runs_out(tmp_path):
    with virtual_gpu() as gpu:
        run, artifacts = run_of(compose("measure.memory_snapshot=true", "sft.steps=0"), tmp_path), []
        run.tracker.artifact = artifacts.append
        with pytest.raises(torch.OutOfMemoryError), traced(run), run.loop.phase("rollout"):
            raise torch.OutOfMemoryError("CUDA out of memory")
    assert [arguments for name, arguments in gpu.calls if name == "history"] == ["all", None], "recording ends"
    assert [path.name for path in artifacts] == ["memory_snapshot.pickle"]
    assert artifacts[0].stat().st_size > 0
    assert run.loop.phases.failed == "rollout"
