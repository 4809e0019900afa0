"""Packed rows: every token is read once, whatever the lengths; micro-batches are within their bound."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import BlockMask, create_mask
from transformers import PreTrainedModel

from bakeoff.batch import Sequences
from bakeoff.model import packing
from bakeoff.model.build import build, check_architecture
from bakeoff.model.forward import ForwardSettings
from bakeoff.model.logprobs import completion_logprobs
from bakeoff.model.micro_batches import micro_batches
from bakeoff.model.packing import PADDING, PROMPT, Packed, completions_per_row, group_mask, pack
from bakeoff.rows import select
from tests.conftest import compose

PROMPTS, BUDGET = st.lists(st.integers(1, 9), min_size=1, max_size=4), 6


@st.composite
def batches(draw) -> Sequences:
    """Groups of completions of any lengths, of one turn or several, with prompts of any lengths."""
    prompts, size = draw(PROMPTS), draw(st.sampled_from([1, 2, 3, 4]))
    lengths = draw(st.lists(st.integers(1, BUDGET), min_size=len(prompts) * size, max_size=len(prompts) * size))
    width = max(prompts)
    shown = torch.arange(width) >= width - torch.tensor(prompts).repeat_interleave(size)[:, None]
    tokens = torch.arange(BUDGET) < torch.tensor(lengths)[:, None]
    policy = torch.randint(2, tokens.shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 9)))).bool()
    last = torch.arange(BUDGET) == torch.tensor(lengths)[:, None] - 1
    mask = tokens & (policy | last) if draw(st.booleans()) else tokens
    ids = torch.randint(3, 19, (len(prompts), width), generator=torch.Generator().manual_seed(sum(lengths)))
    completions = torch.randint(3, 19, mask.shape, generator=torch.Generator().manual_seed(sum(prompts)))
    both = torch.cat([torch.where(shown, ids.repeat_interleave(size, 0), 0), torch.where(tokens, completions, 0)], 1)
    return Sequences(both, torch.cat([shown, tokens], 1), mask, size)


@given(batches())
@settings(max_examples=25, deadline=None)
def test_a_row_holds_a_prompt_once_and_each_completion_but_its_last_token(sequences):
    packed, size, width = pack(sequences), sequences.group_size, sequences.prompt_width
    for number, (ids, member) in enumerate(zip(packed.ids, packed.member, strict=True)):
        group = select(sequences, slice(number * size, (number + 1) * size))
        assert ids[member == PROMPT].tolist() == group.ids[0, :width][group.attention[0, :width]].tolist()
        for completion in range(size):
            own = group.completion_ids[completion][group.completion_attention[completion]].tolist()
            assert ids[member == PROMPT + 1 + completion].tolist() == own[:-1]
    read = int((packed.member != PADDING).sum())
    completions = int(sequences.completion_attention.sum()) - len(sequences)
    assert read == int(sequences.attention[::size, :width].sum()) + completions


@given(batches())
@settings(max_examples=15, deadline=None)
def test_packed_logprobs_and_gradients_are_those_of_each_sequence_alone(sequences):
    policy = build(compose().model, seed=3)
    weights = torch.rand(sequences.mask.shape, generator=torch.Generator().manual_seed(0))
    found, gradients = [], []
    for rows in ([slice(0, len(sequences))], [slice(row, row + 1) for row in range(len(sequences))]):
        parts = [completion_logprobs(policy, select(sequences, part), ForwardSettings()) for part in rows]
        found.append(torch.cat(parts))
        (found[-1] * weights).sum().backward()
        gradients.append([p.grad.clone() for p in policy.network.parameters()])
        policy.network.zero_grad()
    assert torch.allclose(*found, atol=1e-5)
    assert (found[0][~sequences.mask] == 0).all()
    for packed, alone in zip(*gradients, strict=True):
        assert torch.allclose(packed, alone, rtol=1e-3, atol=1e-5)


def both_masks(backbone: PreTrainedModel, packed: Packed) -> tuple[torch.Tensor, BlockMask]:
    """The mask of sdpa [R, 1, W, W], and the block mask of flex_attention."""
    masks = []
    with torch.compiler.set_stance("force_eager"):  # transformers compiles the making of a block mask
        for attention in ("sdpa", "flex_attention"):
            backbone.config._attn_implementation = attention
            masks.append(group_mask(backbone, packed))
    return masks[0], masks[1]


@given(batches())
@settings(max_examples=15, deadline=None)
def test_flex_attention_sees_what_sdpa_sees(sequences):
    backbone = build(compose().model, seed=3).network.base_model
    dense, blocks = both_masks(backbone, pack(sequences))
    rows, _, width, _ = dense.shape
    assert torch.equal(create_mask(blocks.mask_mod, rows, 1, width, width, device=dense.device), dense)


def test_a_block_mask_skips_the_blocks_that_no_token_sees():
    prompt, completion, size = 100, 140, 4
    attention = torch.ones(size, prompt + completion, dtype=torch.bool)
    sequences = Sequences(attention.long(), attention, attention[:, prompt:], size)
    dense, blocks = both_masks(build(compose().model, seed=3).network.base_model, pack(sequences))
    side = blocks.BLOCK_SIZE[0]
    missing = -dense.shape[-1] % side
    seen = torch.nn.functional.pad(dense, (0, missing, 0, missing)).unfold(2, side, side).unfold(3, side, side)
    assert torch.equal(blocks.to_dense().bool(), seen.any(-1).any(-1))
    assert blocks.sparsity() > 0


def test_a_model_from_scratch_may_have_flex_attention():
    check_architecture(replace(compose().model, attention="flex_attention"))


@given(batches(), st.integers(1, 60), st.booleans())
@settings(max_examples=50, deadline=None)
def test_micro_batches_are_all_rows_in_order_within_the_bound(sequences, tokens, shares_prompts):
    parts = list(micro_batches(sequences, ForwardSettings(micro_tokens=tokens, shares_prompts=shares_prompts)))
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(len(sequences)))
    for part in parts:
        chosen = select(sequences, part)
        read = pack(replace(chosen, group_size=completions_per_row(chosen) if shares_prompts else 1))
        assert read.ids.numel() <= tokens or len(chosen) == 1
    assert list(micro_batches(sequences, ForwardSettings())) == [slice(0, len(sequences))]


@pytest.mark.parametrize(
    ("prompt", "completion", "size", "expected"),
    [
        (11, 11, 8, 8),
        (2048, 128, 8, 8),
        (256, 256, 8, 8),
        (64, 512, 8, 2),
        (128, 4096, 8, 1),
        (64, 1024, 8, 2),
        (64, 64, 64, 16),
        (9, 9, 7, 7),
    ],
)
def test_a_row_holds_fewer_completions_of_a_group_the_longer_they_are_beside_the_prompt(
    prompt, completion, size, expected
):
    attention = torch.ones(size, prompt + completion, dtype=torch.bool)
    sequences = Sequences(attention.long(), attention, attention[:, prompt:], size)
    assert completions_per_row(sequences) == expected


def test_rows_of_a_part_of_a_group_give_the_logprobs_of_whole_groups(monkeypatch):
    policy, size, prompt, completion = build(compose().model, seed=3), 6, 5, 4
    ids = torch.randint(3, 19, (2 * size, prompt + completion), generator=torch.Generator().manual_seed(0))
    ids[:, :prompt] = ids[::size, :prompt].repeat_interleave(size, 0)
    attention = torch.ones_like(ids, dtype=torch.bool)
    sequences = Sequences(ids, attention, attention[:, prompt:], size)
    whole = completion_logprobs(policy, sequences, ForwardSettings())
    monkeypatch.setattr(packing, "PAIRS", 1)
    assert completions_per_row(sequences) in (2, 3)
    assert torch.allclose(completion_logprobs(policy, sequences, ForwardSettings()), whole, atol=1e-5)
