"""The embedded engine: padding, the cache, truncation and the end of completions change no probability."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GenerationConfig

from bakeoff.batch import Example
from bakeoff.engine.embedded import Decoding, Embedded, inverse_cdf, truncated
from bakeoff.engine.engine import Request, Sampling, make_rollout
from bakeoff.measure.work import Work
from bakeoff.model.build import build
from bakeoff.model.config import Precision
from bakeoff.model.encode import encode
from bakeoff.model.logprobs import token_logprobs
from bakeoff.model.packing import added_mask, decoding_mask
from bakeoff.model.policy import Policy
from tests.conftest import compose, loop_of
from tests.passes import completion_logits


def prompts_of(policy: Policy, *texts: str):
    return encode(policy, [Example(text, "") for text in texts], [])


def rollout_of(policy: Policy, prompts, completions: int, max_tokens: int, greedy: bool = False, **sampling):
    engine = Embedded()
    engine.load(policy)
    request = Request(prompts, completions, Sampling(**sampling), max_tokens, greedy=greedy)
    return make_rollout(policy, request, engine.generate(request))


def test_a_padded_prompt_has_the_logprobs_of_an_unpadded_one(tiny):
    texts = ["12=", "4829103758=", "7="]
    together = rollout_of(tiny, prompts_of(tiny, *texts), 3, 8)
    logprobs = token_logprobs(completion_logits(tiny, together.sequences), together.sequences.completion_ids)
    for index, text in enumerate(texts):
        alone = prompts_of(tiny, text)
        for row in range(3 * index, 3 * index + 3):
            ids = together.sequences.completion_ids[row][together.sequences.mask[row]]
            whole = torch.cat([alone.ids[0], ids])[None]
            logits = tiny.network(input_ids=whole).logits[0, alone.ids.shape[1] - 1 : -1]
            expected = logits.log_softmax(-1).gather(-1, ids[:, None]).squeeze(-1)
            assert torch.allclose(logprobs[row][: len(ids)], expected, atol=1e-5)


@pytest.mark.parametrize("precision", list(Precision))
def test_padding_costs_no_operator_for_a_token(precision):
    policy = build(compose(f"model.precision={precision}", "sft.steps=0").model, seed=0)
    engine = Embedded()
    engine.load(policy)

    def operators(prompts, tokens):
        with Work() as work, work.counted(1.0, "decoding"):
            engine.generate(Request(prompts_of(policy, *prompts), 2, Sampling(), tokens, greedy=True))
        return sum(work.phases["decoding"].values())

    padded, whole = (operators(prompts, 7) - operators(prompts, 3) for prompts in (["1=", "12345="], ["1=", "2="]))
    assert padded == whole > 200, "of four tokens"


@pytest.mark.parametrize("window", [3, 4, 8])
def test_a_mask_of_decoding_begins_where_a_kernel_may_read_it(window):
    """CUDA's sdpa takes a mask of bfloat16 at multiples of 16 bytes alone."""
    architecture = ["++model.architecture.model_type=mistral", f"++model.architecture.sliding_window={window}"]
    backbone = build(compose("sft.steps=0", *architecture).model, seed=0).network.base_model
    whole = torch.ones(2, 40, dtype=torch.bool)
    mask = added_mask(backbone, whole, torch.bfloat16)
    for read in range(window, 40):
        found = decoding_mask(backbone, mask[:, :read])
        assert found.shape == (2, 1, 1, window)
        assert found.storage_offset() % 8 == 0


class Casts(TorchDispatchMode):
    """Counts the casts of matrices that are weights of a network."""

    def __init__(self, network):
        super().__init__()
        self.number, self._weights = 0, {p.data_ptr() for p in network.parameters() if p.dim() == 2}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += func is torch.ops.aten._to_copy.default and args[0].data_ptr() in self._weights
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("overrides", [[], ["model.lora.rank=2"]], ids=["all weights", "an adapter"])
def test_a_weight_is_cast_once_for_a_rollout(overrides):
    policy = loop_of(compose("algorithm=grpo", "model.precision=bfloat16", "sft.steps=0", *overrides)).learner.actor
    engine, trained = Embedded(), {name for name, p in policy.network.named_parameters() if p.requires_grad}
    engine.load(policy)

    def casts(tokens):
        with Casts(policy.network) as counted:
            engine.generate(Request(prompts_of(policy, "12=", "3="), 2, Sampling(), tokens, greedy=True))
        return counted.number

    assert casts(6) == casts(2) >= 14
    assert {name for name, p in policy.network.named_parameters() if p.requires_grad} == trained


def test_sampler_logprobs_are_those_of_the_training_forward(tiny):
    rollout = rollout_of(tiny, prompts_of(tiny, "12=", "4829103758="), 4, 8, temperature=0.7)
    logits = completion_logits(tiny, rollout.sequences, temperature=0.7)
    expected = token_logprobs(logits, rollout.sequences.completion_ids)
    mask = rollout.sequences.mask
    assert torch.allclose(rollout.sampler_logprobs[mask], expected[mask], atol=1e-5)


def test_a_policy_whose_passes_use_flex_attention_decodes_with_sdpa():
    own, flex = (build(replace(compose().model, attention=kind), seed=3) for kind in ("sdpa", "flex_attention"))
    found = [rollout_of(policy, prompts_of(policy, "12=", "4829103758="), 4, 8) for policy in (own, flex)]
    assert torch.equal(found[0].sequences.ids, found[1].sequences.ids)
    assert torch.equal(found[0].sampler_logprobs, found[1].sampler_logprobs)
    assert flex.network.base_model.config._attn_implementation == "flex_attention", "its other passes use it"


def test_greedy_completions_are_those_of_transformers_generate(tiny):
    prompts = prompts_of(tiny, "12=", "4829103758=", "99999=")
    rollout = rollout_of(tiny, prompts, 1, 9, greedy=True)
    config = GenerationConfig(
        max_new_tokens=9,
        do_sample=False,
        pad_token_id=tiny.tokenizer.pad_token_id,
        eos_token_id=tiny.tokenizer.eos_token_id,
    )
    expected = tiny.network.generate(
        input_ids=prompts.ids, attention_mask=prompts.attention.long(), generation_config=config
    )[:, prompts.ids.shape[1] :]
    width = rollout.sequences.mask.shape[1]
    assert torch.equal(rollout.sequences.completion_ids, expected[:, :width])


def test_the_mask_ends_with_the_first_eos_and_text_ends_before_it(tiny):
    rollout = rollout_of(tiny, prompts_of(tiny, "12=", "345="), 64, 12, temperature=3.0)
    eos = tiny.tokenizer.eos_token_id
    assert rollout.ended.any()
    assert not rollout.ended.all()
    for ids, mask, ended, text in zip(
        rollout.sequences.completion_ids, rollout.sequences.mask, rollout.ended, rollout.completions, strict=True
    ):
        kept = ids[mask].tolist()
        assert (kept.count(eos) == 1 and kept[-1] == eos) if ended else (eos not in kept and len(kept) == 12)
        assert text == tiny.tokenizer.decode(kept, skip_special_tokens=True).replace("<eos>", "")


def test_decoding_ends_within_sixteen_tokens_of_the_last_stop_string(tiny, monkeypatch):
    read = []
    monkeypatch.setattr(
        Decoding,
        "advance",
        lambda self, token, advance=Decoding.advance: (read.append(len(token)), advance(self, token)),
    )
    engine = Embedded()
    engine.load(tiny)
    stop = tuple("0123456789=")
    request = Request(prompts_of(tiny, "12=", "345="), 8, Sampling(temperature=3.0), 100, stop=stop)
    rollout = make_rollout(tiny, request, engine.generate(request))
    last = int(rollout.sequences.mask.sum(1).max())
    assert len(read) < 16 * -(-last // 16)
    assert read == sorted(read, reverse=True)


def test_completions_of_a_group_share_their_prompt_and_differ(tiny):
    rollout = rollout_of(tiny, prompts_of(tiny, "12=", "345="), 5, 8)
    ids = rollout.sequences.ids[:, : -rollout.sequences.mask.shape[1]]
    assert (ids[:5] == ids[0]).all()
    assert (ids[5:] == ids[5]).all()
    assert len(set(rollout.completions)) > 5


def test_sampling_frequencies_are_the_probabilities_of_the_policy(tiny):
    """The first token's frequencies over 20 000 draws lie within four standard errors of its probabilities."""
    prompts, count = prompts_of(tiny, "31="), 20_000
    rollout = rollout_of(tiny, prompts, count, 1)
    frequencies = rollout.sequences.completion_ids[:, 0].bincount(minlength=19) / count
    p = tiny.network(input_ids=prompts.ids).logits[0, -1].softmax(-1)
    assert ((frequencies - p).abs() < 4 * (p * (1 - p) / count).sqrt() + 1e-4).all()


def test_top_k_keeps_the_likeliest_tokens_and_top_p_the_nucleus():
    p = torch.tensor([[0.5, 0.3, 0.15, 0.05]])
    assert truncated(p, top_k=2, top_p=1.0)[0].tolist() == pytest.approx([0.5, 0.3, 0, 0])
    assert truncated(p, top_k=0, top_p=0.8)[0].tolist() == pytest.approx([0.5, 0.3, 0, 0])
    assert truncated(p, top_k=0, top_p=0.01)[0].tolist() == pytest.approx([0.5, 0, 0, 0])


def test_the_inverse_of_the_cumulative_distribution_has_its_probabilities():
    """Evenly spaced numbers give each token its share; a token without weight is never drawn, at the ends neither."""
    weights = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.2, 0.0])
    numbers = torch.linspace(0, 1, 10_001, dtype=torch.float64)[:-1]
    drawn = inverse_cdf(weights.expand(len(numbers), -1), numbers).bincount(minlength=6)
    assert (drawn / len(numbers) - weights).abs().max() < 2e-4
    assert (drawn[weights == 0] == 0).all()
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert inverse_cdf(weights.expand(2, -1) * 0.1, ends).tolist() == [1, 4], "weights may be those left by truncation"


def test_what_a_completion_draws_depends_on_its_own_numbers_alone(tiny):
    """Neither on how many completions there are beside it, nor on which of them have ended and left the batch."""
    prompts = prompts_of(tiny, "12=", "4829103758=", "7=")
    every = rollout_of(tiny, prompts, 16, 12, temperature=2.0).sequences
    lengths = every.mask.sum(1)
    assert lengths.min() <= 3
    assert lengths.max() >= 11, "some go on after others have left"
    fewer = rollout_of(tiny, prompts_of(tiny, "12="), 16, 12, temperature=2.0).sequences
    width = fewer.mask.shape[1]
    assert torch.equal(every.completion_ids[:16, :width], fewer.completion_ids)
