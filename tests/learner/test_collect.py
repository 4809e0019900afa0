"""Completions of one update: sampled once, repeatedly until the scores of groups differ, or with greedy ones; joins."""

import torch

from bakeoff.batch import Example, Rollout, Scores, StepRewards
from bakeoff.loop import collect
from bakeoff.rows import concatenate, select
from bakeoff.task.sort import Sort
from tests.conftest import compose, loop_of
from tests.model.test_forward import grouped
from tests.passes import completion_logits

SMALL = ["tuned=none", "batch.prompts=6", "batch.group_size=2", "sft.steps=0", "task.heldout=4"]


def collected(monkeypatch, verdict, *overrides):
    """Completions of one update, scored by the verifier `verdict(completion, example)`."""
    monkeypatch.setattr(Sort, "verify", lambda self, completion, example: float(verdict(completion, example)))
    return collect(loop_of(compose(*SMALL, *overrides)), 0)


def test_a_method_that_samples_once_learns_from_all_completions(monkeypatch):
    found = collected(monkeypatch, lambda text, example: 1.0, "algorithm=grpo")
    assert (found.rounds, found.sequences) == (1, 12)
    assert found.rollout is found.all_rollouts
    assert found.tokens == int(found.rollout.sequences.mask.sum())


def test_dynamic_sampling_prefers_groups_whose_scores_differ(monkeypatch):
    """Scores differ only for prompts whose first digit is even, so about half of the groups are kept."""
    even = lambda text, example: int(example.prompt[0]) % 2 == 0 and len(text) % 2  # noqa: E731
    found = collected(monkeypatch, even, "algorithm=dapo", "algorithm.group_filter.rounds=9")
    spread = found.scores.total.view(6, 2)
    assert (spread.amax(1) > spread.amin(1)).all()
    assert found.rounds > 1
    assert found.sequences == 12 * found.rounds == len(found.all_rollouts.sequences)
    assert found.tokens == int(found.all_rollouts.sequences.mask.sum()), "every sampled token counts"
    assert len(found.rollout.sequences) == 12
    ids = found.rollout.sequences.ids[:, : found.rollout.sequences.prompt_width].view(6, 2, -1)
    assert (ids[:, 0] == ids[:, 1]).all(), "groups stay whole"
    assert len({tuple(row) for row in ids[:, 0].tolist()}) == 6


def test_dynamic_sampling_stops_after_its_rounds_and_fills_the_batch(monkeypatch):
    found = collected(monkeypatch, lambda text, example: 0.0, "algorithm=dapo")
    assert found.rounds == 3
    assert len(found.rollout.sequences) == 12
    assert found.sequences == 36


def test_greedy_completions_are_scored_and_counted(monkeypatch):
    found = collected(monkeypatch, lambda text, example: len(text) / 100, "algorithm=remax")
    assert found.greedy.shape == (6,)
    assert found.sequences == 18
    again = collected(monkeypatch, lambda text, example: len(text) / 100, "algorithm=remax")
    assert torch.equal(found.greedy, again.greedy)


def test_joined_rollouts_have_the_logprobs_of_their_parts(tiny):
    wide, narrow = grouped(tiny, 8), grouped(tiny, 3)
    joined = concatenate([rollout_with(wide), rollout_with(narrow)])
    assert joined.sequences.mask.shape == (24, 8)
    assert joined.entropy.shape == (24, 8)
    logits = completion_logits(tiny, joined.sequences)
    assert torch.allclose(logits[12:, :3][narrow.mask], completion_logits(tiny, narrow)[narrow.mask], atol=1e-5)
    assert torch.allclose(logits[:12][wide.mask], completion_logits(tiny, wide)[wide.mask], atol=1e-5)


def rollout_with(sequences):
    rows = len(sequences)
    return Rollout(
        examples=[Example("1=", "1")] * rows,
        prompts=["1="] * rows,
        completions=["1"] * rows,
        sequences=sequences,
        sampler_logprobs=torch.zeros(sequences.mask.shape),
        entropy=torch.zeros(sequences.mask.shape),
        ended=torch.ones(rows, dtype=torch.bool),
        max_tokens=8,
        decode=str,
    )


def test_joined_and_selected_step_scores_stay_with_their_completions():
    def scores(shift):
        score = torch.tensor([1.0, 2.0, 3.0]) + shift
        steps = StepRewards(torch.tensor([0, 1, 1]), torch.tensor([2, 0, 1]), score, completions=2)
        two = torch.tensor([0.5, 0.0])
        return Scores(two, two > 0, two, two > 0, {"f": two}, steps)

    joined = concatenate([scores(0), scores(10)])
    assert joined.total.tolist() == [1.5, 5.0, 11.5, 25.0]
    for rows in (torch.tensor([3, 0]), slice(1, 3)):
        chosen = select(joined, rows)
        assert chosen.total.tolist() == joined.total[rows].tolist()
        assert chosen.process.completions == 2
    assert sorted(select(joined, torch.tensor([3, 0])).process.row.tolist()) == [0, 0, 1]
