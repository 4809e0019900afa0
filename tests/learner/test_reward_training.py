"""The reward model: its loss, its calibration, its inputs and its training pairs."""

import json
import math
from dataclasses import replace

import pytest
import torch

from bakeoff.batch import Example
from bakeoff.device import HOST
from bakeoff.engine.embedded import Embedded
from bakeoff.engine.engine import Request, Sampling, make_rollout
from bakeoff.errors import UserError
from bakeoff.learner import reward_training as stage
from bakeoff.measure.phase import Phases
from bakeoff.model.build import build
from bakeoff.model.encode import encode, encode_with_completions
from bakeoff.model.forward import ForwardSettings
from bakeoff.reward.model import bradley_terry
from bakeoff.reward.preferences import Pair, read_pairs, split
from bakeoff.start import collector_of
from bakeoff.task.task import Verdict
from tests.conftest import compose

FEW = ["reward=learned", "sft.steps=0", "preferences.pairs=24", "preferences.heldout=8", "preferences.steps=3"]


def quiet(message):
    pass


@pytest.fixture
def model(tiny):
    """A reward model with a random head, so that its scores differ."""
    model = stage.untrained(tiny, seed=0)
    torch.nn.init.normal_(model.network.head.linear.weight, generator=torch.Generator().manual_seed(1))
    return model


def test_the_bradley_terry_loss_is_minus_the_mean_log_sigmoid_of_the_margins():
    """Margins of 0 and log 3 lose −log ½ and −log ¾."""
    loss = bradley_terry(torch.tensor([1.0, math.log(3)]), torch.tensor([1.0, 0.0]))
    assert loss.item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2, abs=1e-6)


def test_a_score_is_read_at_the_last_token_whatever_the_padding(tiny, model):
    examples = [Example("4829103758=", ""), Example("12=", "")]
    texts = ["0123457889", "12"]
    together = model.raw(encode_with_completions(tiny, examples, texts, []))
    for index in range(2):
        prompt = tiny.tokenizer(examples[index].prompt)["input_ids"]
        answer = tiny.tokenizer(texts[index], add_special_tokens=False)["input_ids"]
        ids = torch.tensor([[*prompt, *answer, tiny.tokenizer.eos_token_id]])
        hidden = model.network.trunk.backbone(input_ids=ids).last_hidden_state[0, -1]
        assert together[index].item() == pytest.approx(model.network.head(hidden).item(), abs=1e-5)


def test_a_rollout_and_its_text_have_the_same_score(tiny, model):
    prompts = encode(tiny, [Example("12=", ""), Example("345=", "")], [])
    engine = Embedded()
    engine.load(tiny)
    request = Request(prompts, 16, Sampling(temperature=3.0), 8)
    rollout = make_rollout(tiny, request, engine.generate(request))
    forward = ForwardSettings()
    by_text = model.score(encode_with_completions(tiny, rollout.examples, rollout.completions, []), forward)
    by_ids = model.score(rollout.sequences, ForwardSettings(micro_tokens=64))
    special = torch.isin(rollout.sequences.completion_ids, torch.tensor([0, 1])) & rollout.sequences.mask
    same = rollout.ended & ~special.any(1)  # the text omits special tokens
    assert same.any()
    assert torch.allclose(by_text[same], by_ids[same], atol=1e-5)


def test_pairs_are_ranked_by_the_true_reward_without_ties(tiny):
    config = compose(*FEW)
    pairs = stage.ranked_pairs(collector_of(config), tiny, 20, "pairs", quiet)
    grades = [[config.task.judge(text, p.example).grade for text in (p.chosen, p.rejected)] for p in pairs]
    assert len(pairs) == 20
    assert all(chosen > rejected for chosen, rejected in grades)


def test_label_noise_reverses_its_share_of_training_pairs_and_no_heldout_pair(tiny):
    config = compose(*FEW, "preferences.pairs=200", "preferences.label_noise=0.25")
    training, heldout = stage.preference_pairs(config.preferences, collector_of(config), tiny, quiet)

    def reversed_share(pairs):
        grades = [[config.task.judge(text, p.example).grade for text in (p.chosen, p.rejected)] for p in pairs]
        return sum(chosen < rejected for chosen, rejected in grades) / len(pairs)

    assert reversed_share(heldout) == 0
    assert 0.15 < reversed_share(training) < 0.35


def test_too_few_pairs_are_refused_with_their_number(tiny, monkeypatch):
    config = compose(*FEW)
    monkeypatch.setattr(type(config.task), "judge", lambda self, completion, example: Verdict(0.0, 0.0, []))
    with pytest.raises(UserError, match=r"preferences\.pairs: of \d+ completions only 0 pairs differ"):
        stage.ranked_pairs(collector_of(config), tiny, 20, "pairs", quiet)


def test_training_learns_a_preference_and_normalises_the_scores(tiny):
    """The longer answer of every pair is the chosen one."""
    config = compose(*FEW)
    pairs = [Pair(Example(f"{i}=", ""), str(i) * 4, str(i)) for i in range(10)]
    model = stage.untrained(tiny, seed=0)
    assert stage.pair_quality(model, tiny, config.task, pairs).accuracy == 0.5, "an untrained model has no preference"
    stage.train(model, tiny, config.task, pairs, config.preferences, 30, quiet)
    stage.normalise(model, tiny, config.task, pairs)
    assert stage.pair_quality(model, tiny, config.task, pairs).accuracy == 1
    examples = [pair.example for pair in pairs for _ in range(2)]
    texts = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
    scores = model.score(encode_with_completions(tiny, examples, texts, []), ForwardSettings())
    assert scores.mean().item() == pytest.approx(0, abs=1e-5)
    assert scores.std().item() == pytest.approx(1, abs=1e-4)


def test_calibration_compares_stated_with_observed_accuracy(tiny, model, monkeypatch):
    """Three of four margins of log 4 (stated 0.8) are right; a margin of 0 (stated 0.5) counts as half right."""
    margins = torch.tensor([math.log(4)] * 3 + [-math.log(4), 0.0])
    monkeypatch.setattr(stage, "pair_scores", lambda *_: (margins, torch.zeros(5)))
    quality = stage.pair_quality(model, tiny, None, [None] * 5)
    assert quality.accuracy == pytest.approx(3.5 / 5)
    row = {round(each["from"], 1): each for each in quality.calibration}[0.8]
    assert (row["pairs"], row["stated"], row["observed"]) == (4, pytest.approx(0.8), pytest.approx(0.75))
    assert quality.calibration_error == pytest.approx((4 * 0.05 + 0) / 5, abs=1e-6)


def test_a_reward_model_is_trained_once_and_then_read_from_the_cache(cache):
    config = compose(*FEW)
    policy = build(config.model, seed=3)
    policy.network.eval()
    first = stage.learned_reward(config, collector_of(config), policy, Phases(HOST), quiet)
    messages = []
    again = stage.learned_reward(config, collector_of(config), policy, Phases(HOST), messages.append)
    assert (first.pairs, first.quality) == (again.pairs, again.quality)
    assert len(messages) == 1, "nothing was trained"
    for name, tensor in first.model.trained().items():
        assert torch.equal(tensor, again.model.trained()[name])


def test_renewal_learns_from_new_pairs_and_replays_earlier_ones(tiny, monkeypatch):
    config = compose(*FEW, "preferences.renewal_pairs=18", "preferences.renewal_steps=40", "preferences.lr=3e-3")
    earlier = [Pair(Example("1=", ""), "1", "2")]
    seen = []
    train = stage.train
    monkeypatch.setattr(stage, "train", lambda *a: (seen.extend(a[3]), train(*a)))
    learned = stage.LearnedReward(stage.untrained(tiny, seed=0), earlier, None)
    renewal = stage.renew_reward_model(learned, config.preferences, collector_of(config), quiet, actor=tiny, update=3)
    assert sum(pair in earlier for pair in seen) == 2, "a tenth of twenty"
    assert len(seen) == 20
    assert renewal.new_pair_accuracy == 0.5
    assert renewal.new_pair_accuracy_after > 0.8


@pytest.mark.parametrize("copies", [1, 3, 16])
@pytest.mark.parametrize("order", ["together", "apart"])
def test_no_prompt_is_on_both_sides_of_the_split_nor_a_held_out_prompt_of_the_task_trained_on(copies, order):
    task = compose().task
    prompts = [f"{number}=" for number in range(40)] + [example.prompt for example in task.heldout_examples()[:10]]
    prompts = [p for p in prompts for _ in range(copies)] if order == "together" else prompts * copies
    pairs = [Pair(Example(prompt + " " * (number % 2), "1"), "1", "2") for number, prompt in enumerate(prompts)]
    training, heldout = split(pairs, 8, task)
    sides = [{pair.example.prompt.strip() for pair in side} for side in (training, heldout)]
    assert len(heldout) == 8
    assert not sides[0] & sides[1]
    assert sides[0]
    assert not any(task.is_reserved(prompt) for prompt in sides[0])


def test_pairs_of_a_file_are_read_and_split_and_bad_ones_are_refused(tmp_path, tiny):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"{i}=", "chosen": "1", "rejected": "2"}) for i in range(9)))
    assert read_pairs(str(path))[3] == Pair(Example("3=", "1"), "1", "2")
    config = compose("reward=learned", f"preferences.path={path}", "preferences.heldout=4")
    training, heldout = stage.preference_pairs(config.preferences, collector_of(config), tiny, quiet)
    assert (len(training), len(heldout)) == (5, 4)
    with pytest.raises(UserError, match=r"preferences.heldout is 9, but of 9 pairs none is left"):
        stage.preference_pairs(replace(config.preferences, heldout=9), collector_of(config), tiny, quiet)
    path.write_text('{"prompt": "1=", "chosen": "1"}')
    with pytest.raises(UserError, match=r"preferences.path: line 1 of .*rejected is missing"):
        read_pairs(str(path))
