"""The functions of `make fuzz` on fewer configurations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests import test_ranges
from tests.chaos.trials import Trial

KINDS = {
    "a mutated configuration": (test_ranges.test_a_mutated_configuration_is_refused_in_one_sentence_or_sound, 2000),
    "an odd command line": (test_ranges.test_an_odd_command_line_is_refused_in_one_sentence_or_sound, 100),
    "a sound configuration takes an update": (
        test_ranges.test_a_sound_configuration_takes_an_update_of_finite_numbers,
        60,
    ),
}


def trials(draw: Random, scale: float = 1.0) -> Iterator[Trial]:
    """Every configuration that is drawn; after the first that does not survive, a kind ends."""
    for kind, (test, number) in KINDS.items():
        seen: list[st.DataObject] = []
        how = settings(
            max_examples=max(1, round(scale * number)),
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        fault = ""
        try:
            seed(draw.getrandbits(32))(how(given(st.data())(counted(test.hypothesis.inner_test, seen))))()
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
        yield from (Trial(kind, f"{n}") for n in range(len(seen) - bool(fault)))
        if fault:
            yield Trial(kind, "the last", fault)


def counted(test: Callable[[st.DataObject], None], seen: list[st.DataObject]) -> Callable[[st.DataObject], None]:
    """The test, which notes what it was called with."""

    def noting(data: st.DataObject) -> None:
        seen.append(data)
        test(data)

    return noting
