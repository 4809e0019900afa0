"""The comparisons with others: what is the same for both, and how a largest batch follows from two predictions."""

from dataclasses import replace

import pytest
import torch

from bakeoff.attribution import Label
from bakeoff.batch import Example
from bakeoff.config import register
from benchmarks.peers import WORKS, even_ids, exact, ours, save_start
from benchmarks.published import DEPTHS, at_depth, largest_batch, peak, trained, zero_2


def test_the_reward_that_trl_calls_is_our_verifier():
    register()
    config = WORKS["sort"].config()
    examples = [Example("31=", "13"), Example("20=", "02")]
    completions = ["13", "20"]
    assert exact(completions, [example.answer for example in examples]) == [
        config.task.verify(completion, example) for completion, example in zip(completions, examples, strict=True)
    ]
    assert even_ids([[2, 4, 5, 6], []]) == [0.75, 0.0]


def test_a_work_starts_from_the_saved_weights_and_times_each_update(tmp_path):
    register()
    sort = WORKS["sort"]
    small = ["batch.prompts=2", "batch.group_size=2", "task.heldout=4", "sft.steps=0"]
    work = replace(sort, overrides=[*sort.overrides, *small], updates=2, warm_up=1)
    save_start(work, str(tmp_path))
    threads = torch.get_num_threads()
    measured = ours(work, str(tmp_path))
    torch.set_num_threads(threads)
    assert len(measured.seconds) == len(measured.cpu_seconds) == len(measured.lengths) == 3
    assert all(second > 0 for second in measured.seconds)
    assert all(1 <= length <= 11 for length in measured.lengths)


def test_a_largest_batch_is_where_a_line_through_two_predictions_meets_80_gb():
    weights, cache = Label("actor", "parameters"), Label("actor", "kv_cache")
    few = {"rollout": {weights: 20 * 10**9, cache: 10 * 10**9}}
    many = {"rollout": {weights: 20 * 10**9, cache: 20 * 10**9}}
    assert largest_batch(few, many, (10, 20)) == 60
    assert largest_batch(few, many, (10, 20), states=40) == 40
    assert largest_batch(few, many, (10, 20), states=90) == 0


def test_sharding_divides_all_but_the_weights_and_frozen_models_are_left_out():
    divided = zero_2(1, 4, offload=False) - zero_2(1, 4, offload=True)
    assert divided == pytest.approx(14 / 4 / 2 * zero_2(1, 1, offload=True))
    cells = {Label("actor", "parameters"): 10**9, Label("reference", "parameters"): 2 * 10**9}
    assert peak(trained({"rollout": cells})) == 1


def test_a_deeper_model_is_on_the_line_through_two_shallow_ones():
    weights, logits = Label("actor", "parameters"), Label("actor", "logits")
    shallow = [{"rollout": {weights: 10 * depth, logits: 7}} for depth in DEPTHS]
    assert at_depth(shallow, 28) == {"rollout": {weights: 280, logits: 7}}
