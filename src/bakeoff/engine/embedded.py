"""The engine inside the process: the policy itself decodes, token by token, with a cache of keys and values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bakeoff.algorithm.divergence import require_finite
from bakeoff.attribution import attributed
from bakeoff.device import HOST, sent
from bakeoff.engine.engine import Engine, Generated, Request, Sampling
from bakeoff.model.config import Precision
from bakeoff.model.encode import decoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bakeoff.model.cache import KeyValueCache
    from bakeoff.model.policy import Policy

CHECK_INTERVAL = 16  # tokens after which the host asks a GPU which completions have ended: it waits for the answer


@dataclass
class Embedded(Engine):
    """Decodes with the policy's own weights, which need no copy: what is trained is what samples."""

    def load(self, policy: Policy) -> None:
        self._policy = policy

    @property
    def exact_logprobs(self) -> bool:
        """In float32. In bfloat16 a pass over single tokens rounds otherwise, by percents of a probability."""
        return self._policy.precision is Precision.float32

    @torch.no_grad()
    def generate(self, request: Request) -> Generated:
        """Each prompt is read once and its cache repeated for its group; completions that have ended leave the batch.

        Each token of each completion has a uniform number of its own, drawn before the first: what a completion draws
        does not depend on when others end. Stop strings are looked for when CHECK_INTERVAL tokens have been decoded.
        """
        policy, device, budget = self._policy, self._policy.device, request.max_tokens
        shape = len(request.prompts.ids) * request.completions, budget
        uniform = None if request.greedy else uniform_numbers(request.seed, shape, request.first).to(device)
        interval = 1 if device == HOST else CHECK_INTERVAL
        ids = torch.full(shape, policy.tokenizer.pad_token_id, device=device)
        precise = torch.promote_types(policy.network.dtype, torch.float32)
        logprobs, entropy = torch.zeros(2, *shape, dtype=precise, device=device)
        with decoding_context(policy):
            decoding, eos_ids = Decoding.begin(policy, request), sent(policy.eos_ids, device)
            rows = torch.arange(shape[0], device=device)  # the completions in the batch
            ended = torch.zeros_like(rows, dtype=torch.bool)
            stops = Stops(request.stop, decoder(policy), shape[0]) if request.stop else None
            for step in range(budget):
                drawn = None if uniform is None else uniform[rows, step]
                chosen = choose(policy, decoding.hidden, request.sampling, drawn)
                for kept, values in zip((ids, logprobs, entropy), chosen, strict=True):
                    kept[rows, step] = values
                if step + 1 == budget:
                    break
                token, ended = chosen[0], ended | torch.isin(chosen[0], eos_ids)
                if (step + 1) % interval == 0:
                    # here alone does decoding wait for the device
                    if stops and (step + 1) % CHECK_INTERVAL == 0:
                        over = stops(rows, ended, ids[rows, step + 1 - CHECK_INTERVAL : step + 1])
                        ended = sent(over, device).bool()
                        left = sent([at for at, each in enumerate(over) if not each], device)
                    else:
                        left = (~ended).nonzero().squeeze(1)
                    if len(left) == 0:
                        break
                    if 2 * len(left) <= len(rows):  # leaving the others out copies the cache: it pays by halves
                        decoding.keep(left)
                        rows, token, ended = rows[left], token[left], ended[left]
                decoding.advance(token)
        require_finite(logprobs, "a log-probability of the policy that samples")
        return Generated(ids, logprobs, entropy)

    @torch.no_grad()
    def trace_peak(self, request: Request) -> None:
        """Reads the prompts and the last token, where the cache is largest."""
        policy = self._policy
        with decoding_context(policy):
            decoding = Decoding.begin(policy, request)
            uniform = torch.zeros(len(decoding.hidden), dtype=torch.float64)
            token, _, _ = choose(policy, decoding.hidden, request.sampling, uniform)
            if request.max_tokens > 1:
                decoding.skip(request.max_tokens - 2)
                decoding.advance(token)
                choose(policy, decoding.hidden, request.sampling, uniform)


class Stops:
    """Finds stop strings in completions while they are decoded, from a few tokens at a time.

    It decodes the new tokens and enough of those before them to hold a stop string, and the whole text only where
    these seem to have one: a text decoded from its middle may differ.
    """

    def __init__(self, stop: tuple[str, ...], decode: Callable[[list[int]], str], completions: int) -> None:
        self._stop, self._decode = stop, decode
        self._before = max((len(each.encode()) for each in stop), default=0)  # a token is at least a byte
        self._read: list[list[int]] = [[] for _ in range(completions)]

    def __call__(self, rows: Tensor, ended: Tensor, new: Tensor) -> list[int]:
        """1 where a completion [R] had `ended`, or its `new` tokens [R, N] complete a stop string; else 0.

        It waits for the device once.
        """
        table = torch.cat([rows[:, None], ended[:, None], new], 1).tolist()
        return [int(over or self._ends(row, tokens)) for row, over, *tokens in table]

    def _ends(self, row: int, new: list[int]) -> bool:
        read = self._read[row]
        read += new
        return self._has(read[-len(new) - self._before :]) and self._has(read)

    def _has(self, tokens: list[int]) -> bool:
        text = self._decode(tokens)
        return any(each in text for each in self._stop)


def uniform_numbers(seed: int, shape: tuple[int, int], first: int = 0) -> Tensor:
    """Uniform numbers [S, T] of the rows from `first` on, in float64.

    They are drawn in the host's memory, so that every device draws the same.
    """
    rows, columns = shape
    every = torch.rand(first + rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return every[first:]


def choose(policy: Policy, hidden: Tensor, sampling: Sampling, uniform: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, their log-probs and the distributions' entropies, each [S], from last hidden states [S, H].

    A token is drawn by the inverse of the cumulative distribution at `uniform` [S]; without it, it is the likeliest.
    """
    with attributed(policy.name, "logits"):
        logprobs = policy.logits(hidden, sampling.temperature).log_softmax(-1)
        probabilities = logprobs.exp()
        entropy = -(probabilities * logprobs).sum(-1)
        if uniform is None:
            token = logprobs.argmax(-1)
        else:
            kept = truncated(probabilities, sampling.top_k, sampling.top_p)
            token = inverse_cdf(kept, uniform)
            if sampling.truncates:
                logprobs = logprobs - kept.sum(-1, keepdim=True).log()
        return token, logprobs.gather(1, token[:, None]).squeeze(1), entropy


def inverse_cdf(weights: Tensor, uniform: Tensor) -> Tensor:
    """The token at which each row's sum of weights [S, V] passes its number [S], as a share of the whole sum.

    Sums are in whole units of 2⁻⁴⁰: integers add up alike in any order, which CUDA's cumsum does not promise of floats.
    """
    sums = (weights * 2**40).long().cumsum_(-1)
    passed = (uniform * sums[:, -1]).long()
    token = torch.searchsorted(sums, passed[:, None], right=True).squeeze(1)
    return token.clamp_(max=weights.shape[1] - 1)  # of NaN, which is found after the rollout


@dataclass
class Decoding:
    """State of the decoding of S completions.

    cache       keys and values of all tokens read so far
    attention   [S, L + T], which leaves out the prompts' padding; none where there is no padding
    position    [S] position of the next token
    hidden      [S, H] last hidden states, which predict the next token
    """

    policy: Policy
    cache: KeyValueCache
    attention: Tensor | None
    position: Tensor
    hidden: Tensor

    @classmethod
    def begin(cls, policy: Policy, request: Request) -> Decoding:
        """Reads each prompt once, and repeats its cache for the group."""
        # 3 s, which --help, errors and reports need not wait for
        from bakeoff.model.cache import KeyValueCache, attention_dtype
        from bakeoff.model.packing import added_mask

        network, prompts, group_size = policy.network, request.prompts, request.completions
        lengths = prompts.attention.sum(1).repeat_interleave(group_size, 0)
        padded = not prompts.attention.all()
        cache = KeyValueCache(network.config, prompts.ids.shape[1] + request.max_tokens - 1)  # the last is never read
        out = network.base_model(
            input_ids=prompts.ids,
            attention_mask=prompts.attention if padded else None,
            position_ids=(prompts.attention.long().cumsum(1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
        )
        with attributed(kind="kv_cache"):
            cache.batch_repeat_interleave(group_size)
        hidden, attention = out.last_hidden_state[:, -1].repeat_interleave(group_size, 0), None
        if padded:
            later = prompts.attention.new_ones(len(lengths), request.max_tokens)
            whole = torch.cat([prompts.attention.repeat_interleave(group_size, 0), later], 1)
            attention = added_mask(network.base_model, whole, attention_dtype(hidden))
        return cls(policy, cache, attention, lengths, hidden)

    def advance(self, token: Tensor) -> None:
        """Reads one more token [S] of each completion."""
        from bakeoff.model.packing import decoding_mask  # late, as the cache

        backbone, read = self.policy.network.base_model, self.cache.get_seq_length() + 1
        out = backbone(
            input_ids=token[:, None],
            attention_mask=None if self.attention is None else decoding_mask(backbone, self.attention[:, :read]),
            position_ids=self.position[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        self.hidden, self.position = out.last_hidden_state[:, -1], self.position + 1

    def keep(self, rows: Tensor) -> None:
        """Keeps these completions alone."""
        with attributed(kind="kv_cache"):
            self.cache.batch_select_indices(rows)
        self.attention = None if self.attention is None else self.attention[rows]
        self.position, self.hidden = self.position[rows], self.hidden[rows]

    def skip(self, tokens: int) -> None:
        """Takes that number of tokens as read, for a prediction on fake tensors."""
        with attributed(self.policy.name, "kv_cache"):
            self.cache.skip(tokens)


@contextmanager
def decoding_context(policy: Policy) -> Iterator[None]:
    """The role and the precision of the policy, the attention of decoding, and every cast of a weight made once."""
    with policy.trunk.computing(), decoding_attention(policy.network.base_model), casts_kept(policy.network):
        yield


@contextmanager
def casts_kept(network: PreTrainedModel) -> Iterator[None]:
    """Lets autocast keep its casts of frozen weights, as it keeps those of weights that require gradients.

    Otherwise it would cast the base of an adapter again for every token.
    """
    frozen = [each for each in network.parameters() if not each.requires_grad and each.is_floating_point()]
    try:
        for each in frozen:
            each.requires_grad_(True)
        yield
    finally:
        for each in frozen:
            each.requires_grad_(False)


@contextmanager
def decoding_attention(backbone: PreTrainedModel) -> Iterator[None]:
    """Decodes with sdpa where other passes use flex_attention, which would compile a mask of every length."""
    config, own = backbone.config, backbone.config._attn_implementation
    config._attn_implementation = "sdpa" if own == "flex_attention" else own
    try:
        yield
    finally:
        config._attn_implementation = own


def truncated(probabilities: Tensor, top_k: int, top_p: float) -> Tensor:
    """Probabilities [S, V], zero outside the k likeliest tokens and outside the nucleus (Holtzman et al. 2020)."""
    kept = probabilities
    if top_k and top_k < kept.shape[-1]:
        kth = kept.topk(top_k, dim=-1).values[:, -1:]
        kept = kept.masked_fill(kept < kth, 0.0)
    if top_p < 1:
        ordered, order = kept.sort(dim=-1, descending=True)
        units = (ordered * 2**40).long()
        sums = units.cumsum(-1)
        outside = torch.zeros_like(kept, dtype=torch.bool).scatter(
            1, order, (sums - units).double() >= top_p * sums[:, -1:]
        )
        kept = kept.masked_fill(outside, 0.0)
    return kept
