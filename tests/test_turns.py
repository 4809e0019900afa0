"""Completions of several turns: an environment's replies are read, and no loss, gradient or statistic is of them."""

import math
from dataclasses import dataclass, replace
from functools import partial
from random import Random

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bakeoff.algorithm import AXES
from bakeoff.batch import Example, Sequences
from bakeoff.engine.conversation import reply_ids
from bakeoff.engine.embedded import Embedded
from bakeoff.engine.engine import turn_text
from bakeoff.errors import UserError
from bakeoff.learner.sft import demonstrations
from bakeoff.learner.update import actor_gradient, critic_gradient, measure_step
from bakeoff.loop import collect, experience_of
from bakeoff.metrics import DEFINITIONS
from bakeoff.model.encode import chat_text
from bakeoff.model.forward import ForwardSettings
from bakeoff.model.logprobs import completion_logprobs
from bakeoff.reward.reward import Reward, to_token_steps
from bakeoff.rows import numbers, select
from bakeoff.task.sort_turns import SortTurns
from bakeoff.task.task import CONVERSATION, Task
from tests.conftest import compose, known, loop_of, update_of
from tests.engine.test_contract import Uncached
from tests.reward.scorers import Broken, Echo
from tests.reward.test_reward import rollout as rolled  # noqa: F401
from tests.test_every_method import FEW_WITH_EVERY_OPTION

SIZES = [
    *("batch.prompts=4", "batch.group_size=2", "task.heldout=4", "measure.kl_sequences=4"),
    "++model.architecture.num_hidden_layers=1",
]
FEW = [
    *("sft.steps=20", "sft.accuracy=0", "sft.seed=0", "sft.batch=32", "sft.lr=1e-2"),
    *("task.max_new_tokens=7", "task.digits=2"),
]
TURNS = ["task=sort_turns", "tuned=none", *SIZES, *FEW]  # a start that ends most of its turns


def loop_for(method, *overrides):
    config = compose(f"algorithm={method}", *TURNS, *overrides)
    if method == "trpo":
        config.algorithm.optimizer.cg_iterations, config.algorithm.optimizer.backtracks = 2, 2
    return loop_of(config)


def rolled_out(loop, task=None, engine=None, prompts=("48=", "91=", "70="), completions=2, **overrides):
    """Completions of these prompts by the loop's policy, on the task or on another one."""
    collector, policy = loop.collector, loop.learner.actor
    collector = replace(collector, task=task or collector.task, engine=engine or collector.engine, **overrides)
    collector.engine.load(policy)
    examples = [Example(prompt, "", {"arrivals": [prompt[:-1], *["12", "34"] * 4]}) for prompt in prompts]
    return collector.roll_out(policy, collector.prompts(policy, examples), completions, "test")


@pytest.mark.parametrize("method", FEW_WITH_EVERY_OPTION)
def test_every_option_learns_from_several_turns_and_from_the_policys_tokens_alone(method):
    """Rubbish at an environment's tokens, wherever a number of theirs could stand, changes nothing."""
    loop = loop_for(method)
    learner, collected = loop.learner, collect(loop, 0)
    mask = collected.rollout.sequences.mask
    assert (collected.rollout.sequences.completion_attention & ~mask).any(), "there is a reply"
    found = []
    for rubbish in (None, 7.0):

        def spoilt(x, rubbish=rubbish):
            return x if x is None or rubbish is None else torch.where(mask, x, rubbish)

        rollout = collected.rollout
        rollout = replace(rollout, sampler_logprobs=spoilt(rollout.sampler_logprobs), entropy=spoilt(rollout.entropy))
        experience, statistics = experience_of(loop, replace(collected, rollout=rollout))
        names = ("behaviour_logprobs", "advantages", "entropy", "reference_logprobs", "values", "returns")
        experience = replace(experience, **{name: spoilt(getattr(experience, name)) for name in names})
        losses = [actor_gradient(learner, experience), measure_step(learner, experience)]
        trained = learner.actor.parameters()
        if learner.critic is not None:
            losses.append(critic_gradient(learner, learner.algorithm.critic, experience))
            trained = [*trained, *learner.critic.trained().values()]
        gradients = [torch.zeros(()) if p.grad is None else p.grad.clone() for p in trained]
        for optimizer in learner.optimizers().values():
            optimizer.zero_grad()
        found.append((numbers((statistics, losses)), gradients))
    assert repr(found[0][0]) == repr(found[1][0])
    assert all(torch.equal(one, other) for one, other in zip(found[0][1], found[1][1], strict=True))
    metrics = update_of(loop)
    assert all(math.isfinite(value) for value in metrics.values()), metrics
    assert not [m for m in metrics if not any(known(m, pattern) for pattern in DEFINITIONS)]
    assert metrics["progress/tokens"] >= int(collected.all_rollouts.sequences.mask.sum())
    assert metrics["length/max"] <= 21, "tokens of the policy"


@pytest.mark.parametrize("critic", ["shared", "adapter"])
def test_critics_on_another_models_trunk_take_several_turns(critic):
    config = compose("algorithm=ppo", *TURNS)
    config.algorithm.critic = AXES["critic"][critic]
    assert math.isfinite(update_of(loop_of(config))["critic/value_loss"])


@pytest.mark.parametrize("engine", [Embedded, Uncached])
def test_a_row_is_prompt_turns_and_replies_with_the_logprobs_of_the_training_forward(engine):
    loop = loop_for("grpo", "sampling.temperature=0.7")
    policy, rollout = loop.learner.actor, rolled_out(loop, engine=engine())
    sequences, decode = rollout.sequences, rollout.decode
    assert (rollout.group_size, rollout.max_tokens, len(sequences)) == (2, 21, 6)
    replies = 0
    for row, example in enumerate(rollout.examples):
        talk = example.columns[CONVERSATION]
        said = sequences.completion_ids[row][sequences.completion_attention[row]].tolist()
        assert decode(said) == "".join(message["content"] for message in talk[1:])
        written = [message["content"] for message in talk if message["role"] == "assistant"]
        assert rollout.completions[row] == "\n".join(written)
        assert decode(sequences.completion_ids[row][sequences.mask[row]].tolist()) == "".join(written)
        assert [m["content"] for m in talk if m["role"] == "user"][1:] == ["12=", "34="][: len(written) - 1]
        last = sequences.completion_attention[row].nonzero().max()
        assert sequences.mask[row, last], "the policy has the last word"
        assert rollout.ended[row] == (sequences.completion_ids[row, last] in policy.eos_ids)
        replies += len(written) - 1
    assert replies > 3
    forward = ForwardSettings(temperature=0.7)
    logprobs = completion_logprobs(policy, sequences, forward)
    assert torch.allclose(logprobs, rollout.sampler_logprobs, atol=1e-5)
    alone = [completion_logprobs(policy, select(sequences, slice(row, row + 1)), forward) for row in range(6)]
    assert torch.allclose(torch.cat(alone), logprobs, atol=1e-5)


@dataclass
class Hasty(SortTurns):
    """Ends the conversations of some prompts after their first turn."""

    ends: str = ""

    def reply(self, messages, example):
        return None if messages[0]["content"] == self.ends else super().reply(messages, example)


@pytest.mark.parametrize("engine", [Embedded, Uncached])
def test_a_conversation_does_not_depend_on_when_others_end(engine):
    loop = loop_for("grpo", "sampling.temperature=0.7")
    plain = rolled_out(loop, engine=engine())
    hasty = rolled_out(loop, Hasty(digits=2, heldout=4, max_new_tokens=7, ends="48="), engine())
    assert hasty.completions[2:] == plain.completions[2:]
    assert hasty.completions[:2] == [text.split("\n")[0] for text in plain.completions[:2]]
    assert any("\n" in text for text in plain.completions[:2])


def test_a_conversation_ends_where_the_model_has_no_position_for_a_reply_and_a_turn():
    loop = loop_for("grpo", "task.max_new_tokens=40")
    rollout = rolled_out(loop, SortTurns(digits=2, heldout=4, turns=8, max_new_tokens=40), prompts=["48="] * 4)
    assert rollout.sequences.attention.sum(1).max() <= 128
    with_no_room = Talkative(heldout=4, max_new_tokens=40)
    rollout = rolled_out(loop, with_no_room, prompts=["48="] * 8)
    assert not rollout.ended.any()
    assert all(len(example.columns[CONVERSATION]) == 2 for example in rollout.examples)


@dataclass
class Talkative(SortTurns):
    """Replies by 200 digits."""

    def reply(self, messages, example):
        return "1" * 200


@pytest.mark.parametrize(("does", "reason"), [("returns", "returned 7"), ("raises", "raised IndexError")])
def test_a_reply_that_is_no_text_is_refused_in_one_sentence(does, reason):
    reward, task = Reward({"verifier": 1.0}, isolated=False), Broken(does=does)
    with pytest.raises(UserError, match=f"the `reply` of the task Broken {reason}") as caught:
        reward.replies(task, [([{"role": "user", "content": "1="}], Example("1=", None))])
    assert "\n" not in str(caught.value)


def test_code_of_others_replies_in_a_worker():
    assert Task().most_turns == 1, "a task without `reply` has one turn"
    task, example = Echo(), Example("1=", None)
    talk = [{"role": "user", "content": "1="}, {"role": "assistant", "content": "2"}]
    assert Reward({"verifier": 1.0}).replies(task, [(talk, example), (talk * 2, example)]) == ["2?", None]


def test_steps_end_on_the_tokens_of_their_turns():
    loop = loop_for("grpo_process")
    task = SortTurns(digits=2, heldout=4, max_new_tokens=7)
    rollout = rolled_out(loop, task)
    example = task.generate(Random(0))
    steps = to_token_steps([task.verify_steps(text, example) for text in rollout.completions], rollout)
    assert rollout.sequences.mask[steps.row, steps.token].all(), "no score is on a reply"
    for row, text in enumerate(rollout.completions):
        turns, ids = text.split("\n"), rollout.sequences.completion_ids[row]
        ends = sorted(set(steps.token[steps.row == row].tolist()))
        shown = [rollout.decode(ids[: end + 1][rollout.sequences.mask[row, : end + 1]].tolist()) for end in ends]
        for turn, _ in enumerate(turns):
            if all(turns[: turn + 1]):
                assert "".join(turns[: turn + 1]) in shown


@pytest.mark.parametrize("stop", [(), (";;",), ("ab", ";;;;")], ids=str)
def test_a_step_ends_in_its_turn_whatever_ends_the_turn(rolled, stop):  # noqa: F811
    draw = Random(0)
    for _ in range(60):
        texts = ["".join(draw.choices("cde", k=draw.randint(1, 4))) for _ in range(draw.randint(1, 3))]
        ids, mask, expected = [], [], []
        for number, text in enumerate(texts):
            turn = [*map(ord, text), *map(ord, draw.choice(stop or ("\0",)))]
            reply = [ord("r")] * (2 if number else 0)
            expected.append(len(ids) + len(reply) + len(text) - 1)
            ids, mask = ids + reply + turn, mask + [False] * len(reply) + [True] * len(turn)
        row = torch.tensor([[0, *ids]])
        sequences = Sequences(row, torch.ones_like(row).bool(), torch.tensor([mask]))
        decode = partial(turn_text, lambda ids: "".join(map(chr, ids)).replace("\0", ""), stop)
        ends = [len("\n".join(texts[: number + 1])) for number in range(len(texts))]
        steps = to_token_steps(
            [[(end, 1.0) for end in [*ends, ends[-1] + 1]]], replace(rolled, sequences=sequences, decode=decode)
        )
        assert steps.token.tolist() == [*expected, len(ids) - 1]


def test_the_digits_of_all_turns_are_sorted_and_each_turn_is_a_step():
    task = SortTurns(digits=2)
    example = Example("31=", "13\n0139\n001399", {"arrivals": ["31", "90", "09"]})
    talk = [{"role": "user", "content": "31="}, {"role": "assistant", "content": "?"}]
    assert [task.reply(talk * turns, example) for turns in (1, 2, 3)] == ["90=", "09=", None]
    assert task.verify("13\n0139\n001399", example) == 1
    assert task.verify("13\n0139", example) == 0
    assert task.verify_steps("13\n0139\n001399", example) == [(2, 1 / 3), (7, 1 / 3), (14, 1 / 3)]
    assert task.verify_steps("13\n90", example) == [(2, 1 / 3), (5, 0.0), (7, 0.0)]
    drawn = task.generate(Random(3))
    assert task.verify("\n".join(task.demonstration(drawn)), drawn) == 1


def test_a_demonstration_is_read_with_its_replies_and_learned_without(tiny):
    task = SortTurns(digits=2, heldout=4)
    shown = [Example("31=", "13\n0139\n001399", {"arrivals": ["31", "90", "09"]}), task.generate(Random(0))]
    sequences = demonstrations(tiny, task, shown)
    written = [tiny.tokenizer.decode(ids) for ids, _ in sequences.written()]
    eos = tiny.tokenizer.eos_token
    assert written[0] == f"13{eos}0139{eos}001399{eos}"
    said = sequences.completion_ids[0][sequences.completion_attention[0]]
    assert tiny.tokenizer.decode(said.tolist()) == f"13{eos}90=0139{eos}09=001399{eos}"


CHAT = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def test_a_reply_in_a_chat_is_what_the_template_writes_between_two_turns(tiny):
    vocabulary = {c: n for n, c in enumerate(["<pad>", "<end>", *map(chr, range(32, 127)), "\n"])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<pad>")
    fast.chat_template = CHAT
    policy = replace(tiny, tokenizer=fast, chat=True)
    talk = [
        {"role": r, "content": c}
        for r, c in [("user", "a"), ("assistant", "b"), ("user", "an answer"), ("assistant", "d")]
    ]
    texts = [chat_text(policy, talk[:turns], add_generation_prompt=True) for turns in (1, 3)]
    first, whole = fast(texts, add_special_tokens=False)["input_ids"]
    turn = fast("b", add_special_tokens=False)["input_ids"]
    assert first + turn + reply_ids(policy, ["an answer"])[0] == whole


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["reward=learned"], "reward.functions names `learned`, but the task sort_turns has several turns"),
        (["mode=advantage_quality"], "mode is advantage_quality, which continues"),
    ],
)
def test_what_reads_a_completion_as_one_text_is_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        compose("task=sort_turns", "tuned=none", *overrides)
