"""Evaluation on held-out prompts: pass@k, lengths of right and wrong answers, and the larger last evaluation."""

import itertools
from collections import Counter
from dataclasses import dataclass, replace

import pytest
import torch

from bakeoff.batch import Example
from bakeoff.heldout import evaluate, pass_at
from bakeoff.metrics import DEFINITIONS, heldout_metrics
from bakeoff.run import train
from bakeoff.task.sort import Sort
from tests.conftest import compose, known, loop_of, run_of

FEW = ("algorithm=grpo", "tuned=none", "sft.steps=0", "task.heldout=6", "batch.prompts=2", "batch.group_size=2")


def test_pass_at_k_is_the_share_of_all_sets_of_k_that_hold_a_right_completion():
    right = (torch.rand(7, 9, generator=torch.Generator().manual_seed(0)) < torch.linspace(0, 1, 7)[:, None]).float()
    found = pass_at(right)
    assert list(found) == [2, 4, 8]
    for k, share in found.items():
        every = [
            any(row[i] for i in chosen) for row in right.tolist() for chosen in itertools.combinations(range(9), k)
        ]
        assert share == pytest.approx(sum(every) / len(every))
    assert pass_at(right[:, :1]) == {}
    assert pass_at(torch.ones(3, 2000))[1024] == 1.0


@dataclass
class FirstDigit(Sort):
    """Right are completions that begin with a digit above 4; a verifier that fails at others' second digit."""

    def verify(self, completion: str, example: Example) -> float:
        if completion[:1] == "0":
            raise ValueError("no zeros")
        return float(completion[:1] in tuple("56789"))


def test_an_evaluation_counts_failures_and_measures_right_and_wrong_answers_apart():
    loop = loop_of(compose(*FEW))
    collector = replace(loop.collector, task=FirstDigit(heldout=6, max_new_tokens=11))
    loop = replace(loop, collector=collector)
    heldout = evaluate(loop, 8)
    collector.engine.load(loop.learner.actor)
    sampled, greedy = (
        collector.roll_out(loop.learner.actor, loop.heldout, completions, "evaluation", 0, greedy=completions == 1)
        for completions in (8, 1)
    )
    right = torch.tensor([text[:1] in tuple("56789") for text in sampled.completions])
    lengths = sampled.sequences.mask.sum(1).float()
    texts = sampled.completions + greedy.completions
    assert heldout.sampled_accuracy == pytest.approx(float(right.float().mean()))
    assert heldout.failed == pytest.approx(sum(text[:1] == "0" for text in texts) / len(texts))
    assert heldout.failed > 0
    assert heldout.right_length == pytest.approx(float(lengths[right].mean()))
    assert heldout.wrong_length == pytest.approx(float(lengths[~right].mean()))
    assert heldout.pass_at == pass_at(right.float().view(6, 8))
    metrics = heldout_metrics(heldout)
    assert {"eval/pass_at_2", "eval/pass_at_4", "eval/pass_at_8", "eval/failed", "eval/wrong_length"} <= set(metrics)
    assert all(any(known(metric, pattern) for pattern in DEFINITIONS) for metric in metrics)


def test_no_right_answer_has_no_length():
    metrics = heldout_metrics(evaluate(loop_of(compose(*FEW)), 2))
    assert "eval/right_length" not in metrics
    assert metrics["eval/wrong_length"] > 0


@dataclass
class Recording(Sort):
    """Sort, with every prompt whose completion is judged."""

    def __post_init__(self):
        super().__post_init__()
        self.judged = []

    def verify(self, completion: str, example: Example) -> float:
        self.judged.append(example.prompt)
        return super().verify(completion, example)


def test_the_first_and_the_last_evaluation_read_more_prompts_and_each_once(tmp_path):
    few = (*FEW, "evaluation.final=20", "evaluation.every=1", "checkpoint.every=0", "budget={unit: updates, limit: 2}")
    run = run_of(compose(*few), tmp_path)
    run.loop.collector.task = task = Recording(heldout=6, max_new_tokens=11)
    task.final = 20
    train(run)
    held, more = ({example.prompt for example in each} for each in (task.heldout_examples(), task.final_examples()))
    times = Counter(prompt for prompt in task.judged if prompt in more)
    assert {times[prompt] for prompt in held} == {6}, "greedily and sampled, at the start, after one update, at the end"
    assert {times[prompt] for prompt in more - held} == {4}, "at the start and at the end"
    assert len(more) == 20


def test_accuracy_is_split_by_the_difficulty_of_prompts():
    loop = loop_of(compose(*FEW))
    collector = replace(loop.collector, task=FirstDigit(heldout=12, max_new_tokens=11, digits=3, shortest=1))
    loop = replace(loop, collector=collector)
    loop = replace(loop, heldout=collector.prompts(loop.learner.actor, collector.task.heldout_examples()))
    heldout = evaluate(loop, 4)
    metrics = heldout_metrics(heldout)
    lengths = Counter(len(example.answer) for example in loop.heldout.examples)
    assert len(lengths) > 1
    levels = {n: metrics[f"eval/sampled_accuracy_of_{n}"] for n in lengths}
    assert sum(levels[n] * count for n, count in lengths.items()) / 12 == pytest.approx(heldout.sampled_accuracy)
    assert evaluate(loop_of(compose(*FEW)), 2).by_difficulty == {}, "all have ten digits"
