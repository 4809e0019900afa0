"""Rollouts: the layout of a batch, the distribution that completions are drawn from, and the engine that decodes them.

The three know nothing of each other, and none knows the method: every method gets its completions here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bakeoff.batch import Prompts, Rollout, Sequences
from bakeoff.device import sent
from bakeoff.model.encode import decoder
from bakeoff.model.weights import weights_version
from bakeoff.ranges import count, number

if TYPE_CHECKING:
    from bakeoff.model.policy import Policy


@dataclass
class Batch:
    """Layout of an update's rollout, the same for every method.

    prompts      number of prompts
    group_size   number of completions of each prompt
    """

    prompts: int = count(32, least=1, most=2**16, unit="prompts")
    group_size: int = count(8, least=1, most=2**16, unit="completions")

    @property
    def sequences(self) -> int:
        """Number of completions."""
        return self.prompts * self.group_size


@dataclass
class Sampling:
    """Distribution that a token is drawn from.

    temperature   divides the logits, in sampling and in every log-prob that the learner computes
    top_k         number of likeliest tokens that may be drawn; 0: all
    top_p         probability of the nucleus that may be drawn from; 1: all
    """

    temperature: float = number(1.0, least=0.01, most=100)  # outside: greedy, or uniform, to rounding
    top_k: int = count(0, unit="tokens")
    top_p: float = number(1.0, least=0.001, most=1)

    @property
    def truncates(self) -> bool:
        """Whether some tokens are never drawn: the sampler is then not the policy, whose log-probs are those of all."""
        return self.top_k > 0 or self.top_p < 1


@dataclass
class Request:
    """A request for completions of an engine.

    completions   number of completions of each prompt
    max_tokens    generation budget of a completion, EOS included
    greedy        the likeliest token is taken instead of drawing one
    stop          strings, the first of which to occur ends a completion; what an engine samples past it is ignored
    first         number of the first completion among those that share the seed: a part of a request generates what
                  the whole would there
    """

    prompts: Prompts
    completions: int
    sampling: Sampling
    max_tokens: int
    seed: int = 0
    greedy: bool = False
    stop: tuple[str, ...] = ()
    first: int = 0


@dataclass
class Generated:
    """Completions as an engine returns them; columns after a row's first EOS are ignored.

    ids        [S, T] int64, the G completions of a prompt in consecutive rows
    logprobs   [S, T] log-prob of each token under the distribution that it was drawn from, truncation included
    entropy    [S, T] entropy in nats of each token's distribution, before truncation; none where it is not computed
    version    `weights_version` of the policy that the engine has a copy of; none where it has no copy
    """

    ids: Tensor
    logprobs: Tensor
    entropy: Tensor | None = None
    version: str | None = None


class StaleWeights(RuntimeError):
    """An engine wrote completions with other weights than the policy's."""


@dataclass
class Engine:
    """Decodes completions. tests/engine/test_contract.py runs this contract over every engine.

    An engine holds weights from `load` on. What it generates is a function of these weights and of the request, its
    seed included: equal requests return equal completions.
    """

    def load(self, policy: Policy) -> None:
        """Takes the policy's weights as they are now, its tokenizer and its end-of-sequence tokens."""
        raise NotImplementedError

    @property
    def exact_logprobs(self) -> bool:
        """Whether its log-probs equal those of the training forward to rounding.

        Where they do not, the learner computes log π_old again.
        """
        raise NotImplementedError

    def generate(self, request: Request) -> Generated:
        """The completions that are asked for; raises Diverged where the log-prob of a sampled token is not finite."""
        raise NotImplementedError

    def trace_peak(self, request: Request) -> None:
        """Runs the part of `generate` that needs the most memory on this device, for a prediction on fake tensors.

        An engine that decodes outside of this process does nothing here.
        """

    def rest(self) -> None:
        """Frees what only decoding needs, until the next `load`: the learner's passes come next."""


def make_rollout(policy: Policy, request: Request, generated: Generated) -> Rollout:
    """Masks and decodes what an engine that has loaded the policy has generated.

    Raises StaleWeights where the policy has moved since the engine took its copy.
    """
    if generated.version is not None and generated.version != (now := weights_version(policy)):
        raise StaleWeights(
            f"weights {generated.version or 'of no version'} wrote the completions, but the policy has {now}; the "
            "engine must load the policy after every step."
        )
    prompts, completions, ids = request.prompts, request.completions, generated.ids
    is_end = torch.isin(ids, sent(policy.eos_ids, ids.device))
    if request.stop:
        is_end = is_end | stop_tokens(ids, is_end, request.stop, decoder(policy))
    mask = is_end.long().cumsum(1) - is_end.long() == 0
    lengths = mask.sum(1).tolist()
    longest = max(lengths)
    ids, mask, is_end = ids[:, :longest], mask[:, :longest], is_end[:, :longest]
    ids = torch.where(mask, ids, policy.tokenizer.pad_token_id)
    as_text = reader(policy, request.stop)
    rows = [row[:length] for row, length in zip(ids.tolist(), lengths, strict=True)]
    return Rollout(
        examples=[example for example in prompts.examples for _ in range(completions)],
        prompts=[text for text in prompts.texts for _ in range(completions)],
        completions=[as_text(row) for row in rows],
        sequences=Sequences(
            ids=torch.cat([prompts.ids.repeat_interleave(completions, 0), ids], 1),
            attention=torch.cat([prompts.attention.repeat_interleave(completions, 0), mask], 1),
            mask=mask,
            group_size=completions,
        ),
        sampler_logprobs=torch.where(mask, generated.logprobs[:, :longest], 0.0),
        entropy=None if generated.entropy is None else torch.where(mask, generated.entropy[:, :longest], 0.0),
        ended=is_end.any(1),
        max_tokens=request.max_tokens,
        decode=as_text,
        version=generated.version,
    )


def reader(policy: Policy, stop: tuple[str, ...]) -> Callable[[list[int]], str]:
    """Token ids of a turn → their text, without a stop string and what follows."""
    return partial(turn_text, decoder(policy), stop)


def turn_text(decode: Callable[[list[int]], str], stop: tuple[str, ...], tokens: list[int]) -> str:
    """The text of tokens up to the first of the stop strings."""
    text = decode(tokens)
    return text[: min((at for each in stop if (at := text.find(each)) >= 0), default=len(text))]


def stop_tokens(ids: Tensor, is_end: Tensor, stop: tuple[str, ...], decode: Callable[[list[int]], str]) -> Tensor:
    """[S, T] bool, true on the token that completes the first stop string of a row, if that comes before its EOS."""
    lengths = (is_end.long().cumsum(1) == 0).sum(1).tolist()
    found = torch.zeros_like(is_end)
    for row, (tokens, length) in enumerate(zip(ids.tolist(), lengths, strict=True)):

        def stops(count: int, tokens: list[int] = tokens) -> bool:
            text = decode(tokens[:count])
            return any(each in text for each in stop)

        if stops(length):
            found[row, bisect_left(range(1, length + 1), True, key=stops)] = True
    return found
