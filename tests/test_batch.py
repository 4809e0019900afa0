"""Rows of nouns: selecting and joining are written once, and hold for every noun, those of a test among them."""

from dataclasses import dataclass, fields, is_dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bakeoff.batch import Example, Experience, Rollout, Scores, Sequences, StepRewards
from bakeoff.rows import concatenate, group_rows, numbers, select, to_device

GROUPS, SIZE, WIDTH = 4, 2, 3
ROWS = GROUPS * SIZE


@dataclass
class Unseen:
    """A noun that the package does not know, with every kind of field."""

    tensor: torch.Tensor
    texts: list[str]
    by_name: dict[str, torch.Tensor]
    nested: Sequences
    absent: torch.Tensor | None
    shared: int


def sequences() -> Sequences:
    ids = torch.arange(ROWS * 5).view(ROWS, 5)
    return Sequences(ids, torch.ones(ROWS, 5).bool(), torch.ones(ROWS, WIDTH).bool(), SIZE)


def nouns() -> dict[str, object]:
    x, flat = torch.arange(ROWS * WIDTH).view(ROWS, WIDTH).float(), torch.arange(ROWS).float()
    texts = [str(row) for row in range(ROWS)]
    steps = StepRewards(
        torch.tensor([0, 0, 3, 7]), torch.tensor([0, 2, 1, 2]), torch.tensor([1.0, 2.0, 3.0, 4.0]), ROWS
    )
    examples = [Example(text, "") for text in texts]
    return {
        "rollout": Rollout(examples, texts, texts, sequences(), x, None, flat > 3, 9, str),
        "scores": Scores(flat, flat > 2, flat, flat > 4, {"verifier": flat, "mine": 2 * flat}, steps),
        "experience": Experience(sequences(), x, 2 * x, 9, entropy=3 * x, values=4 * x),
        "unseen": Unseen(x, texts, {"a": flat}, sequences(), None, 7),
    }


def equal(a: object, b: object) -> bool:
    """Whether two nouns have equal fields, the order of step rewards aside."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, StepRewards):
        return triples(a) == triples(b)
    if is_dataclass(a):
        return all(equal(getattr(a, each.name), getattr(b, each.name)) for each in fields(a))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return a == b


def triples(steps: StepRewards) -> tuple[int, list[tuple[float, ...]]]:
    return steps.completions, sorted(zip(steps.row.tolist(), steps.token.tolist(), steps.score.tolist(), strict=True))


@pytest.mark.parametrize("name", nouns())
@given(data=st.data())
@settings(deadline=None, max_examples=20)
def test_parts_of_a_noun_join_to_the_noun(name, data):
    noun, cut = nouns()[name], SIZE * data.draw(st.integers(1, GROUPS - 1))
    assert equal(concatenate([select(noun, slice(0, cut)), select(noun, slice(cut, None))]), noun)


@pytest.mark.parametrize("name", nouns())
@given(order=st.permutations(range(GROUPS)), count=st.integers(1, GROUPS))
@settings(deadline=None, max_examples=20)
def test_selected_groups_are_the_joined_groups(name, order, count):
    noun, chosen = nouns()[name], torch.tensor(order[:count])
    apart = [select(noun, slice(SIZE * group, SIZE * (group + 1))) for group in chosen.tolist()]
    assert equal(select(noun, group_rows(chosen, SIZE)), concatenate(apart))


def test_narrower_parts_are_padded_on_the_side_of_their_padding():
    """Prompts on the left, so that completions start in one column; everything else on the right."""
    wide, narrow = sequences(), Sequences(torch.ones(2, 3).long(), torch.ones(2, 3).bool(), torch.ones(2, 2).bool(), 2)
    joined = concatenate([wide, narrow])
    assert joined.prompt_width == wide.prompt_width == 2
    assert joined.ids[-1].tolist() == [0, 1, 1, 1, 0]
    assert joined.mask[-1].tolist() == [True, True, False]
    assert joined.attention[-1].tolist() == [False, True, True, True, False]


def test_what_all_rows_share_stays_as_it_is():
    noun = nouns()["unseen"]
    assert select(noun, slice(0, 2)).shared == concatenate([noun, noun]).shared == 7
    assert select(noun, slice(0, 2)).absent is None


def test_numbers_and_devices_reach_nested_fields():
    statistics = {"a": torch.tensor(1.5), "b": [torch.tensor(2), 3.0], "c": None, "d": "text"}
    assert numbers(statistics) == {"a": 1.5, "b": [2.0, 3.0], "c": None, "d": "text"}
    assert to_device(nouns()["scores"], torch.device("meta")).terms["mine"].is_meta
