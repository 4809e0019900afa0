"""What is read from CUDA's allocator and set there, on a virtual GPU whose allocator counts real tensors."""

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
    """A tensor of 10⁶ bytes times `size` on the GPU, to the next block."""
    return torch.zeros(int(size * 250_000), device=GPU)


def test_the_device_is_the_gpu_where_there_is_one():
    assert choose_device("auto") == HOST
    with virtual_gpu():
        assert [choose_device(name) for name in ("auto", "cuda", "cuda:0")] == [GPU] * 3
        assert choose_device("cpu") == HOST
        assert device_name(choose_device("auto")) == "virtual GPU"
    with pytest.raises(UserError, match="device is 'cuda', which this machine lacks; it may be auto, cpu"):
        choose_device("cuda")
    with virtual_gpu(), pytest.raises(UserError, match=r"device is 'cuda:1'.*it may be auto, cpu, cuda, cuda:0"):
        choose_device("cuda:1")


def test_each_phase_has_the_allocators_peak_since_its_own_beginning():
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
    assert peaks["actor_update"].reserved >= 6e6, "the allocator gives nothing back by itself"
    assert weights.sum() == 0


def test_what_no_tensor_explains_is_the_remainder():
    with virtual_gpu():
        phases = Phases(GPU)
        weight, workspace = megabytes(1.024), megabytes(0.0512)
        with phases.tracing([(weight, Label("actor", "parameters"))]), phases("rollout"):
            torch.zeros(10)  # in the host's memory: not the device's
        metrics = peak_metrics(phases.take().peaks)
    assert metrics["memory/rollout/actor_parameters_mb"] == 1.024
    assert metrics["memory/rollout/remainder_mb"] == pytest.approx(0.0512)
    assert metrics["memory/rollout_mb"] == pytest.approx(1.0752)
    assert workspace.sum() == 0


def test_a_run_begins_with_an_empty_cache_and_its_limit():
    """Through torch.cuda's own functions, which refuse a device without an index."""
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


def test_a_snapshot_is_of_a_gpu():
    with pytest.raises(UserError, match=r"memory_snapshot is true, but the device is cpu"):
        compose("measure.memory_snapshot=true", "device=cpu")


def test_the_snapshot_is_kept_where_memory_runs_out(tmp_path):
    with virtual_gpu() as gpu:
        run, artifacts = run_of(compose("measure.memory_snapshot=true", "sft.steps=0"), tmp_path), []
        run.tracker.artifact = artifacts.append
        with pytest.raises(torch.OutOfMemoryError), traced(run), run.loop.phase("rollout"):
            raise torch.OutOfMemoryError("CUDA out of memory")
    assert [arguments for name, arguments in gpu.calls if name == "history"] == ["all", None], "recording ends"
    assert [path.name for path in artifacts] == ["memory_snapshot.pickle"]
    assert artifacts[0].stat().st_size > 0
    assert run.loop.phases.failed == "rollout"
