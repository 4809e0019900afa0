"""The supervised start: it ends at a sampled accuracy, which the seeds then share."""

from collections import defaultdict
from dataclasses import dataclass, replace

import pytest

from bakeoff.engine.embedded import Embedded
from bakeoff.heldout import evaluate
from bakeoff.identity import config_id, training_id
from bakeoff.learner.sft import start_identity, starting_policy
from bakeoff.start import collector_of, prepare, start
from bakeoff.task.sort import Sort
from bakeoff.task.task import as_read
from tests.conftest import compose

EASY = ("algorithm=grpo", "task.digits=3", "task.max_new_tokens=4", "task.heldout=100", "sft.batch=64")


def started(*overrides: str):
    messages: list[str] = []
    config = compose(*EASY, *overrides)
    return start(config, prepare(config), messages.append), messages


def test_the_start_ends_at_the_accuracy_that_is_asked_for_and_has_it_on_held_out_prompts():
    loop, _ = started("sft.steps=400", "sft.accuracy=0.3")
    stage = loop.supervised
    assert stage.steps < 400
    assert stage.accuracy >= 0.3
    assert evaluate(loop, 4).sampled_accuracy == pytest.approx(stage.accuracy, abs=0.15)
    longer, _ = started("sft.steps=400", "sft.accuracy=0.6")
    assert longer.supervised.steps > stage.steps
    assert longer.start != loop.start


def test_a_start_is_the_same_when_it_is_made_again(tmp_path, monkeypatch):
    first, _ = started("sft.steps=400", "sft.accuracy=0.1")
    monkeypatch.setenv("BAKEOFF_CACHE", str(tmp_path))
    again, _ = started("sft.steps=400", "sft.accuracy=0.1")
    cached, _ = started("sft.steps=400", "sft.accuracy=0.1")
    assert first.supervised == again.supervised == cached.supervised
    assert first.start == again.start == cached.start


def test_an_accuracy_that_is_not_reached_is_named_with_what_was_reached_also_from_the_cache():
    for _ in range(2):
        loop, messages = started("sft.steps=3", "sft.accuracy=0.9")
        assert loop.supervised.steps == 3
        (message,) = (m for m in messages if "sft.accuracy is 0.9" in m)
        assert f"after sft.steps=3 steps {loop.supervised.accuracy:.3f} of" in message
        assert "set sft.steps higher" in message


class Absent(Embedded):
    """An engine that generates nothing."""

    def generate(self, request):
        raise AssertionError("it is asked for completions")


def test_the_accuracy_of_a_start_is_the_policys_own_whatever_engine_samples_later(tmp_path, monkeypatch):
    config = compose(*EASY, "sft.steps=3", "sft.accuracy=0.9")
    monkeypatch.setenv("BAKEOFF_CACHE", str(tmp_path))
    source = replace(collector_of(config), engine=Absent())
    _, stage = starting_policy(config, source, prepare(config), lambda message: None)
    assert stage == started("sft.steps=3", "sft.accuracy=0.9")[0].supervised


def test_without_an_accuracy_all_steps_are_taken_and_none_is_measured():
    loop, _ = started("sft.steps=3", "sft.accuracy=0")
    assert (loop.supervised.steps, loop.supervised.accuracy) == (3, None)
    none, _ = started("sft.steps=0")
    assert none.supervised is None


def test_the_key_of_a_start_holds_what_decides_it():
    asked = ("sft.steps=3", "sft.accuracy=0.5")
    key = start_identity(compose(*EASY, *asked))
    assert key != start_identity(compose(*EASY, *asked, "sft.accuracy=0.4"))
    assert key != start_identity(compose(*EASY, *asked, "sampling.temperature=0.5"))
    assert key == start_identity(compose(*EASY, *asked, "budget.limit=7"))
    assert key == start_identity(compose(*EASY, *asked, "engine=rounded")), "samplers share their starts"
    fixed = ("sft.steps=3", "sft.accuracy=0")
    assert start_identity(compose(*EASY, *fixed)) == start_identity(compose(*EASY, *fixed, "sampling.temperature=0.5"))


def test_prompts_of_the_last_evaluation_are_part_of_what_is_trained():
    one, other = (compose(*EASY, f"evaluation.final={number}") for number in (100, 150))
    for key in (config_id, training_id, start_identity):
        assert key(one) != key(other)


@dataclass
class Recording(Sort):
    """Sort, with every prompt that is asked for by the number of prompts of the call."""

    def __post_init__(self):
        super().__post_init__()
        self.asked = defaultdict(set)

    def training_examples(self, count, rng, without=frozenset()):
        examples = super().training_examples(count, rng, without)
        self.asked[count] |= {as_read(example.prompt) for example in examples}
        return examples


def test_the_checked_prompts_are_neither_held_out_nor_trained_on():
    config = compose(*EASY, "sft.steps=5", "sft.accuracy=0.9", "sft.seed=77")
    config.task = task = Recording(digits=3, max_new_tokens=4, heldout=100)
    start(config, prepare(config))
    checked, trained = task.asked[1], task.asked[config.sft.batch]
    assert len(checked) > 20, "of a thousand prompts the check takes a share"
    assert len(trained) > 100
    assert not checked & (trained | {as_read(example.prompt) for example in task.final_examples()})
