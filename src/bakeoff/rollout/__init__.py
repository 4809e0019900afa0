"""Sampling: the shared way in which every method gets its completions.

An engine is a function (policy, prompts, …) → `Rollout`; a second one is another option of this group.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bakeoff.algorithm.step import require_finite
from bakeoff.attribution import attributed
from bakeoff.batch import Prompts, Rollout, Sequences
from bakeoff.errors import UserError

if TYPE_CHECKING:
    from transformers import Cache

    from bakeoff.model.load import Policy


@dataclass
class Sampler:
    """prompts       prompts of a step
    group_size    completions of each prompt, for every method alike
    temperature   divides the logits, in sampling and in every log-prob that the learner computes
    top_k, top_p  truncate the sampling distribution (0 and 1: not at all); the learner's log-probs do not
    """

    prompts: int = 32
    group_size: int = 8
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        for key in ("prompts", "group_size"):
            if getattr(self, key) < 1:
                raise UserError(f"rollout.{key} is {getattr(self, key)}; it must be at least 1.")
        if self.temperature <= 0:
            raise UserError(f"rollout.temperature is {self.temperature}; it must be above 0.")
        if self.top_k < 0:
            raise UserError(f"rollout.top_k is {self.top_k}; it must be 0 (off) or above.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"rollout.top_p is {self.top_p}; it must be above 0 and at most 1.")

    @property
    def sequences(self) -> int:
        """Completions of a step."""
        return self.prompts * self.group_size

    @torch.no_grad()
    def __call__(
        self,
        policy: Policy,
        prompts: Prompts,
        group_size: int,
        max_new_tokens: int,
        generator: torch.Generator,
        greedy: bool = False,
    ) -> Rollout:
        """`group_size` completions of every prompt; `generator` is on the policy's device.

        Each prompt is read once and its cache repeated for its group; decoding stops when all have ended. Raises
        Diverged where the log-probability of a sampled token is not finite.
        """
        with policy.trunk.computing():
            decoding = Decoding.begin(policy, prompts, group_size, max_new_tokens)
            ids, logprobs, entropies = [], [], []
            ended = torch.zeros(len(decoding.lengths), dtype=torch.bool, device=policy.device)
            eos_ids = policy.eos_ids
            for step in range(max_new_tokens):
                token, logprob, entropy = self.choose(decoding.hidden, policy, generator, greedy)
                token = torch.where(ended, policy.tokenizer.pad_token_id, token)
                ids.append(token)
                logprobs.append(logprob)
                entropies.append(entropy)
                ended = ended | torch.isin(token, eos_ids)
                if ended.all() or step + 1 == max_new_tokens:
                    break
                decoding.advance(token, step)
        columns = [torch.stack(column, 1) for column in (ids, logprobs, entropies)]
        require_finite(columns[1], "a log-probability of the policy that samples")
        return assembled(policy, prompts, group_size, *columns)

    def choose(
        self, hidden: Tensor, policy: Policy, generator: torch.Generator, greedy: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids, their log-probs and the distributions' entropies, each [S], from last hidden states [S, H]."""
        with attributed(policy.name, "logits"):
            logits = policy.logits(hidden, self.temperature)
            logprobs = logits.log_softmax(-1)
            if greedy:
                token = logits.argmax(-1)
            else:
                probabilities = truncated(logits, self.top_k, self.top_p).softmax(-1)
                # NaN is no probability, and multinomial's refusal ends a process on a GPU: found after the rollout
                token = torch.multinomial(probabilities.nan_to_num(1.0), 1, generator=generator).squeeze(1)
            return token, logprobs.gather(1, token[:, None]).squeeze(1), -(logprobs.exp() * logprobs).sum(-1)


@dataclass
class Decoding:
    """Where the sampling of S completions stands.

    cache      keys and values of all that was read
    attention  [S, L + T] bool, false on the prompts' padding
    lengths    [S] tokens of each prompt
    hidden     [S, H] last hidden states, which predict the next token
    """

    policy: Policy
    cache: Cache
    attention: Tensor
    lengths: Tensor
    hidden: Tensor

    @classmethod
    def begin(cls, policy: Policy, prompts: Prompts, group_size: int, max_new_tokens: int) -> Decoding:
        """Reads each prompt once, and repeats what was read for its group."""
        from bakeoff.model.cache import KeyValueCache  # 3 s, which --help, errors and reports need not wait for

        network, count, width = policy.network, prompts.ids.shape[0] * group_size, prompts.ids.shape[1]
        attention = torch.ones(count, width + max_new_tokens, dtype=torch.bool, device=policy.device)
        attention[:, :width] = prompts.attention.repeat_interleave(group_size, 0)
        cache = KeyValueCache(config=network.config)
        with policy.trunk.computing():
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
        """Reads one more token [S] of each completion, its number `step` (from 0)."""
        read = self.cache.get_seq_length() + 1
        with self.policy.trunk.computing():
            out = self.policy.network.base_model(
                input_ids=token[:, None],
                attention_mask=self.attention[:, :read],
                position_ids=(self.lengths + step)[:, None],
                past_key_values=self.cache,
                use_cache=True,
            )
        self.hidden = out.last_hidden_state[:, -1]


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


def assembled(
    policy: Policy, prompts: Prompts, group_size: int, ids: Tensor, logprobs: Tensor, entropy: Tensor
) -> Rollout:
    """A rollout of what was sampled, masked and decoded: ids, logprobs and entropy are [S, T]."""
    is_end = torch.isin(ids, policy.eos_ids)
    ends_before = is_end.long().cumsum(1) - is_end.long()
    mask = ends_before == 0
    prompt_ids = prompts.ids.repeat_interleave(group_size, 0)
    prompt_attention = prompts.attention.repeat_interleave(group_size, 0)
    ids = torch.where(mask, ids, policy.tokenizer.pad_token_id)
    lengths = (mask & ~is_end).sum(1).tolist()
    rows = [row[:length] for row, length in zip(ids.tolist(), lengths, strict=True)]
    return Rollout(
        examples=prompts.examples,
        prompts=prompts.texts,
        completions=policy.tokenizer.batch_decode(rows, skip_special_tokens=True),
        group_size=group_size,
        sequences=Sequences(
            ids=torch.cat([prompt_ids, ids], 1),
            attention=torch.cat([prompt_attention, mask], 1),
            mask=mask,
            group_size=group_size,
        ),
        decode=partial(policy.tokenizer.decode, skip_special_tokens=True),
        sampler_logprobs=torch.where(mask, logprobs, 0.0),
        entropy=torch.where(mask, entropy, 0.0),
        ended=is_end.any(1),
    )
