"""The engine inside the process: the policy itself decodes, token by token, with a cache of keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bakeoff.algorithm.divergence import require_finite
from bakeoff.attribution import attributed
from bakeoff.engine.engine import Engine, Generated, Request, Sampling
from bakeoff.model.config import Precision

if TYPE_CHECKING:
    from transformers import Cache

    from bakeoff.model.policy import Policy


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
        """Each prompt is read once and its cache repeated for its group; decoding stops when all have ended."""
        policy, max_tokens = self._policy, request.max_tokens
        draws = torch.Generator(device=policy.device).manual_seed(request.seed)
        with policy.trunk.computing():
            decoding = Decoding.begin(policy, request)
            columns: list[tuple[Tensor, Tensor, Tensor]] = []
            ended = torch.zeros(len(decoding.lengths), dtype=torch.bool, device=policy.device)
            eos_ids = policy.eos_ids
            for step in range(max_tokens):
                token, logprob, entropy = choose(policy, decoding.hidden, request.sampling, draws, request.greedy)
                token = torch.where(ended, policy.tokenizer.pad_token_id, token)
                columns.append((token, logprob, entropy))
                ended = ended | torch.isin(token, eos_ids)
                if ended.all() or step + 1 == max_tokens:
                    break
                decoding.advance(token, step)
        ids, logprobs, entropy = (torch.stack(column, 1) for column in zip(*columns, strict=True))
        require_finite(logprobs, "a log-probability of the policy that samples")
        return Generated(ids, logprobs, entropy)

    @torch.no_grad()
    def trace_peak(self, request: Request) -> None:
        """Reads the prompts and the last token, where the cache is largest."""
        policy, draws = self._policy, torch.Generator()
        with policy.trunk.computing():
            decoding = Decoding.begin(policy, request)
            token, _, _ = choose(policy, decoding.hidden, request.sampling, draws)
            if request.max_tokens > 1:
                decoding.skip(request.max_tokens - 2)
                decoding.advance(token, request.max_tokens - 2)
                choose(policy, decoding.hidden, request.sampling, draws)


def choose(
    policy: Policy, hidden: Tensor, sampling: Sampling, draws: torch.Generator, greedy: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, their log-probs and the distributions' entropies, each [S], from last hidden states [S, H]."""
    with attributed(policy.name, "logits"):
        logits = policy.logits(hidden, sampling.temperature)
        logprobs = logits.log_softmax(-1)
        if greedy:
            token = logits.argmax(-1)
        else:
            probabilities = truncated(logits, sampling.top_k, sampling.top_p).softmax(-1)
            # NaN is no probability, and multinomial's refusal ends a process on a GPU: found after the rollout
            token = torch.multinomial(probabilities.nan_to_num(1.0), 1, generator=draws).squeeze(1)
        return token, logprobs.gather(1, token[:, None]).squeeze(1), -(logprobs.exp() * logprobs).sum(-1)


@dataclass
class Decoding:
    """State of the decoding of S completions.

    cache       keys and values of all tokens read so far
    attention   [S, L + T] bool, false on the prompts' padding
    lengths     [S] number of tokens of each prompt
    hidden      [S, H] last hidden states, which predict the next token
    """

    policy: Policy
    cache: Cache
    attention: Tensor
    lengths: Tensor
    hidden: Tensor

    @classmethod
    def begin(cls, policy: Policy, request: Request) -> Decoding:
        """Reads each prompt once, and repeats its cache for the group."""
        from bakeoff.model.cache import KeyValueCache  # 3 s, which --help, errors and reports need not wait for

        network, prompts, group_size = policy.network, request.prompts, request.completions
        count, width = prompts.ids.shape
        attention = torch.ones(count * group_size, width + request.max_tokens, dtype=torch.bool, device=policy.device)
        attention[:, :width] = prompts.attention.repeat_interleave(group_size, 0)
        cache = KeyValueCache(config=network.config)
        out = network.base_model(
            input_ids=prompts.ids,
            attention_mask=prompts.attention,
            position_ids=(prompts.attention.long().cumsum(1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
        )
        cache.batch_repeat_interleave(group_size)
        hidden = out.last_hidden_state[:, -1].repeat_interleave(group_size, 0)
        return cls(policy, cache, attention, prompts.attention.sum(1).repeat_interleave(group_size, 0), hidden)

    def advance(self, token: Tensor, step: int) -> None:
        """Reads one more token [S] of each completion, at position `step` (from 0) of it."""
        read = self.cache.get_seq_length() + 1
        out = self.policy.network.base_model(
            input_ids=token[:, None],
            attention_mask=self.attention[:, :read],
            position_ids=(self.lengths + step)[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        self.hidden = out.last_hidden_state[:, -1]

    def skip(self, tokens: int) -> None:
        """Grows the cache by that number of tokens without reading any, for a prediction on fake tensors."""
        with attributed(self.policy.name, "kv_cache"):
            for layer in self.cache.layers:
                batch, heads, read, width = layer.keys.shape
                grown = read + tokens
                if layer.is_sliding:
                    layer.cumulative_length += tokens
                    grown = min(grown, layer.sliding_window - 1)
                for name in ("keys", "values"):
                    old = getattr(layer, name)
                    setattr(layer, name, old.new_empty(0))  # freed first: a real cache never holds both for all tokens
                    setattr(layer, name, old.new_empty(batch, heads, grown, width))


def truncated(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits [S, V] with −inf outside the k likeliest tokens and outside the nucleus (Holtzman et al. 2020)."""
    if top_k and top_k < logits.shape[-1]:
        kth = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        # in whole units of 2⁻⁴⁰: integers add up alike in any order, which CUDA's cumsum does not promise for floats
        probabilities = (ordered.softmax(-1) * 2**40).long()
        before = probabilities.cumsum(-1) - probabilities
        outside = torch.zeros_like(logits, dtype=torch.bool).scatter(1, order, before >= int(top_p * 2**40))
        logits = logits.masked_fill(outside, -torch.inf)
    return logits
