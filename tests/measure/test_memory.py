"""The ledger counts every live storage once, under its label, until it is freed."""

import mmap
import sys

import pytest
import torch

from bakeoff.attribution import PARKED, Label, attributed, current_label
from bakeoff.device import HOST
from bakeoff.measure.ledger import Ledger
from bakeoff.measure.memory import peak_resident_bytes
from bakeoff.measure.phase import Peak, Phases
from bakeoff.metrics import peak_metrics

WEIGHT = Label("actor", "parameters")


def test_live_and_peak_bytes_count_each_storage_once():
    weight = torch.zeros(1000)
    with Ledger(HOST, [(weight, WEIGHT), (weight.view(10, 100), WEIGHT)]) as ledger:
        assert ledger.live == 4000, "a view has no storage of its own"
        x = torch.ones(500)
        y = x * 2
        assert ledger.live == 4000 + 2000 + 2000
        del y
        z = x.view(5, 100)
        assert ledger.live == 4000 + 2000
        del x
        assert ledger.live == 6000, "the view keeps the storage"
        del z
        assert (ledger.live, ledger.peak) == (4000, 8000)
        assert ledger.peak_cells == {WEIGHT: 4000, Label(): 4000}
        ledger.reset_peak()
        assert (ledger.peak, ledger.peak_cells[Label()]) == (4000, 0)


def test_a_backward_pass_is_traced_and_its_gradients_are_not_activations():
    layer = torch.nn.Linear(100, 100)
    gradients = Label("actor", "gradients")
    with Ledger(HOST, [(p, WEIGHT) for p in layer.parameters()]) as ledger:
        before = ledger.live
        with attributed("actor", "activations"):
            layer(torch.ones(10, 100)).square().sum().backward()
        size = 4 * (100 * 100 + 100)
        assert ledger.live - before == size, "only the gradients remain"
        assert ledger.cells[gradients] == size
        assert ledger.peak > ledger.live
        assert sum(ledger.peak_cells.values()) == ledger.peak
        layer.zero_grad(set_to_none=True)
        assert ledger.cells[gradients] == 0
    layer(torch.ones(1, 100)).sum().backward()
    assert ledger.cells[gradients] == 0, "the ledger removes its hooks"


def test_a_gradient_of_the_embedding_is_recognised_during_the_backward_pass():
    """The gradient of a tied embedding from the logits waits for that from the inputs; its shape identifies it."""
    embedding = torch.nn.Embedding(50, 8)
    with (
        Ledger(HOST, [(embedding.weight, WEIGHT)], embedding.weight.shape) as ledger,
        attributed("actor", "activations"),
    ):
        hidden = embedding(torch.arange(20)).tanh()
        halfway = []
        hidden.register_hook(lambda gradient: halfway.append(dict(ledger.cells)))
        (hidden @ embedding.weight.T).logsumexp(-1).sum().backward()
    assert halfway[0][Label("actor", "gradients")] == 50 * 8 * 4
    assert ledger.peak_cells[Label("actor", "logits")] >= 20 * 50 * 4


def test_a_nested_scope_ends_with_its_block_even_after_an_error():
    with attributed("actor", "activations"):
        with attributed(kind="logits"):
            assert current_label() == ("actor", "logits")
        with pytest.raises(ZeroDivisionError), attributed("critic"):
            raise ZeroDivisionError
        assert current_label() == ("actor", "activations")
    assert current_label() == ("data", "other")


def test_a_parked_tensor_is_not_counted():
    weight = torch.zeros(1000)
    with Ledger(HOST, [(weight, WEIGHT)]) as ledger:
        with attributed("actor", PARKED):
            weight.data = weight.data.clone()
        assert ledger.live == 0
        with attributed("actor", "parameters"):
            weight.data = weight.data.clone()
        assert ledger.cells == {WEIGHT: 4000}


def test_a_cast_of_a_weight_counts_as_parameters():
    weight = torch.nn.Parameter(torch.zeros(1000))
    with Ledger(HOST, [(weight, WEIGHT)]) as ledger, attributed("critic", "activations"):
        low = weight.to(torch.bfloat16)
        x = torch.ones(10).to(torch.float64)
    assert ledger.cells[WEIGHT] == 4000 + 2000
    assert ledger.cells[Label("critic", "activations")] >= 80
    assert low.sum() + x.sum() == 10


def test_more_bytes_than_the_limit_raise_out_of_memory():
    with pytest.raises(torch.OutOfMemoryError, match=r"0.1 MB needed, 0.1 MB allowed"), Ledger(HOST, limit=50_000):
        torch.zeros(20_000)


def test_the_peak_of_a_phase_excludes_memory_of_an_earlier_phase():
    phases = Phases(torch.device("cpu"))
    with phases.tracing([]):
        with phases("large"):
            torch.ones(100_000)
        with phases("small"):
            torch.ones(10)
    measured = phases.take()
    assert {name: peak.allocated for name, peak in measured.peaks.items()} == {"large": 400_000, "small": 40}
    assert set(measured.seconds) == {"large", "small"}
    assert phases.take().peaks == {}
    assert phases.traced["large"].cells == {Label(): 400_000}


def test_a_nested_phase_is_measured_separately():
    """The inner phase's peak includes the outer's tensors; the outer's peak excludes the inner's."""
    phases = Phases(torch.device("cpu"))
    with phases.tracing([]), phases("outer"):
        held = torch.ones(10)
        with phases("inner"):
            torch.ones(1000)
        torch.ones(100)
    measured = phases.take()
    assert {name: peak.allocated for name, peak in measured.peaks.items()} == {"outer": 440, "inner": 4040}
    assert held.sum() == 10


def test_the_phase_that_failed_is_recorded_and_its_ledger_kept():
    phases = Phases(torch.device("cpu"))
    with pytest.raises(torch.OutOfMemoryError), phases.tracing([], limit=5000), phases("outer"), phases("inner"):
        torch.ones(2000)
    assert phases.failed == "inner"
    assert phases.traced["inner"].cells == {Label(): 8000}


def test_peaks_become_metrics_in_megabytes():
    peaks = {
        "rollout": Peak(3_000_000, 5_000_000, {Label("actor", "kv_cache"): 2_000_000}),
        "measure": Peak(9_000_000, 0, {}),
    }
    assert peak_metrics(peaks) == {
        "memory/rollout_mb": 3,
        "memory/rollout/actor_kv_cache_mb": 2,
        "memory/rollout/remainder_mb": 1,
        "memory/rollout_reserved_mb": 5,
        "memory/measure_mb": 9,
        "memory/peak_mb": 3,  # `measure` is not part of training
    }


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's mark of resident memory is Linux's")
def test_resident_memory_forgets_an_earlier_peak():
    """The memory comes from the kernel, because an allocator may keep freed memory."""

    def touched() -> mmap.mmap:
        memory = mmap.mmap(-1, 200_000_000)
        memory.write(bytes(200_000_000))
        return memory

    peak_resident_bytes()
    with touched():
        assert peak_resident_bytes() > 200_000_000
    peak_resident_bytes()
    small = peak_resident_bytes()
    with touched():
        assert peak_resident_bytes() > small + 180_000_000
