"""The tensor tracker counts what is alive, once, and forgets what is freed."""

import torch

from bakeoff.measure.ledger import Ledger
from bakeoff.measure.phase import Phases


def test_live_and_peak_bytes_by_hand():
    weight = torch.zeros(1000)
    with Ledger([weight, weight.view(10, 100)]) as tracker:
        assert tracker.live == 4000, "a view holds nothing of its own"
        x = torch.ones(500)
        y = x * 2
        assert tracker.live == 4000 + 2000 + 2000
        del y
        z = x.view(5, 100)
        assert tracker.live == 4000 + 2000
        del x
        assert tracker.live == 6000, "the view keeps the storage"
        del z
        assert (tracker.live, tracker.peak) == (4000, 8000)
        tracker.reset_peak()
        assert tracker.peak == 4000


def test_backward_is_followed():
    layer = torch.nn.Linear(100, 100)
    with Ledger(layer.parameters()) as tracker:
        before = tracker.live
        layer(torch.ones(10, 100)).square().sum().backward()
        assert tracker.live - before == 4 * (100 * 100 + 100), "what stays are the gradients"
        assert tracker.peak > tracker.live


def test_phases_do_not_contaminate_each_other():
    phases = Phases(torch.device("cpu"))
    with phases.following([], on=True):
        with phases("large"):
            torch.ones(100_000)
        with phases("small"):
            torch.ones(10)
    seconds, peaks = phases.take()
    assert peaks == {"large": 400_000, "small": 40}
    assert set(seconds) == {"large", "small"}
    assert phases.take() == ({}, {})


def test_a_phase_inside_another_is_told_apart():
    """The inner phase's peak includes what the outer holds, and the outer's does not include the inner's own."""
    phases = Phases(torch.device("cpu"))
    with phases.following([], on=True), phases("outer"):
        held = torch.ones(10)
        with phases("inner"):
            torch.ones(1000)
        torch.ones(100)
    seconds, peaks = phases.take()
    assert peaks == {"outer": 440, "inner": 4040}
    assert set(seconds) == {"outer", "inner"}
    assert held.sum() == 10
