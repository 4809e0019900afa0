"""Rollouts by vLLM, in this process or on a server: what is asked of it, what it returns, and whose weights it has."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch._subclasses.fake_tensor import FakeTensor

from bakeoff.algorithm.divergence import require_finite
from bakeoff.engine.engine import Engine, Generated, Request, Sampling, make_rollout
from bakeoff.errors import UserError
from bakeoff.model.config import Precision
from bakeoff.model.encode import decoder
from bakeoff.randomness import derive

if TYPE_CHECKING:
    from bakeoff.model.policy import Policy

OTHERWISE = "engine=embedded needs no other library; with resume=DIR it resumes a run from its last checkpoint"
# nats: mean differences of a token's log-prob from that of the training forward below which a model is the same
EXACT, ROUNDED = 1e-3, 0.2


@dataclass
class Completion:
    """A completion as vLLM returns it.

    stop   stop string or id of the token that ended it; none where something else did
    """

    ids: list[int]
    logprobs: list[float]
    stop: str | int | None


@dataclass
class Server:
    """A running vLLM, in this process or on a server.

    dtype     precision of its weights and passes
    room      number of tokens that a prompt and its completion may have
    checked   whether its model is known to be the policy's
    """

    dtype: torch.dtype
    room: int
    checked: bool = field(default=False, kw_only=True)

    def take(self, policy: Policy) -> None:
        """Takes the policy's weights, those of an adapter merged into its base."""
        raise NotImplementedError

    def complete(self, prompts: list[list[int]], parameters: list[dict[str, Any]]) -> list[Completion]:
        """The completions of each prompt, one after another; raises UserError where other weights wrote them.

        The cache of earlier prompts is emptied: it may be of older weights, and equal requests must compute alike.
        """
        raise NotImplementedError

    def rest(self) -> bool:
        """Frees memory that the learner may use until the next `take`; returns whether it did. On other GPUs: never."""
        return False

    def clear(self) -> None:
        """Clears its keys and values, which hold NaN that would reach what is computed beside it."""
        raise NotImplementedError


class VllmEngine(Engine):
    """Decodes with a vLLM, which has a copy of the weights and receives it before every rollout.

    name   what `engine` is set to
    """

    name: ClassVar[str]

    def connect(self, policy: Policy) -> Server:
        """The vLLM, which may have other weights."""
        raise NotImplementedError

    def alive(self) -> AbstractContextManager[None]:
        """Turns whatever ends vLLM into a UserError."""
        raise NotImplementedError

    def no_room(self, tokens: int) -> str:
        """A sentence that the server has no room for this number of tokens, and what gives it more."""
        raise NotImplementedError

    @torch.no_grad()
    def load(self, policy: Policy) -> None:
        """Sends all weights, those of an adapter merged into its base."""
        from bakeoff.model.weights import weights_version  # late, as it imports transformers

        if isinstance(next(policy.network.parameters()), FakeTensor):  # a prediction
            return
        self._policy, self._version = policy, ""  # while weights are sent, there is no version of them
        with self.alive():
            self._server = self.connect(policy)
            self._server.take(policy)
        self._version = weights_version(policy)
        if not self._server.checked:
            self.check()
            self._server.checked = True

    def rest(self) -> None:
        """Lets the vLLM free memory that the learner may use; the next `load` sends weights again."""
        with self.alive():
            if self._server.rest():
                self._version = ""

    @property
    def exact_logprobs(self) -> bool:
        """Never: its kernels are others."""
        return False

    @torch.no_grad()
    def generate(self, request: Request) -> Generated:
        """The completions of a prompt are one request of vLLM, each with a seed of its own.

        Log-probs are of the distribution after temperature, top_k and top_p; those of greedy completions, which nothing
        learns from, are at temperature 1.
        """
        policy, prompts, sampling = self._policy, request.prompts, request.sampling
        if (longest := prompts.ids.shape[1] + request.max_tokens) > self._server.room:
            raise UserError(self.no_room(longest))
        ends, first = policy.eos_ids, request.first // request.completions
        copies = request.completions if request.greedy else 1  # vLLM takes one greedy completion of a prompt
        parameters = [
            {
                "n": request.completions // copies,
                "temperature": 0.0 if request.greedy else sampling.temperature,
                "top_k": 0 if request.greedy else sampling.top_k,
                "top_p": 1.0 if request.greedy else sampling.top_p,
                "seed": derive(request.seed, "completions of a prompt", first + number) >> 1,  # the n-th adds n
                "max_tokens": request.max_tokens,
                "min_p": 0.0,  # this and the next three have other defaults in some models' configurations
                "repetition_penalty": 1.0,
                "presence_penalty": 0.0,
                "frequency_penalty": 0.0,
                "ignore_eos": True,  # the policy defines the tokens that end a completion
                "stop_token_ids": ends,
                "stop": list(request.stop) or None,
                "include_stop_str_in_output": True,
                "detokenize": bool(request.stop),
                "skip_special_tokens": False,
                "logprobs": 0,
            }
            for number in range(len(prompts.ids))
        ]
        read = [ids[shown].tolist() for ids, shown in zip(prompts.ids, prompts.attention, strict=True)]
        with self.alive():
            completions = [each for each in self._server.complete(read, parameters) for _ in range(copies)]
        self.require_stops(completions, request.stop)
        shape = len(completions), max(len(each.ids) for each in completions)
        ids = torch.full(shape, policy.tokenizer.pad_token_id)
        logprobs = torch.zeros(shape)
        for row, each in enumerate(completions):
            ids[row, : len(each.ids)] = torch.tensor(each.ids)
            logprobs[row, : len(each.ids)] = torch.tensor(each.logprobs)
        if not torch.isfinite(logprobs).all():
            self._server.clear()
        require_finite(logprobs, "a log-probability of the policy that samples")
        return Generated(ids.to(policy.device), logprobs.to(policy.device), version=self._version)

    def require_stops(self, completions: list[Completion], stop: tuple[str, ...]) -> None:
        """Raises UserError where a completion ends at a stop string that its text, as the tokenizer has it, lacks."""
        decode = decoder(self._policy)
        for each in completions:
            if isinstance(each.stop, str) and not any(end in decode(each.ids) for end in stop):
                raise UserError(
                    f"engine is {self.name}, which ends a completion at {each.stop!r}, but the tokenizer's text has no "
                    "such string; choose another stop string of the task, or engine=embedded."
                )

    def check(self) -> None:
        """Raises UserError where vLLM's model is not the policy's: it may read a configuration otherwise."""
        from bakeoff.engine.check import COMPLETION, GROUP, probe, probe_prompts
        from bakeoff.model.forward import ForwardSettings
        from bakeoff.model.logprobs import completion_logprobs

        policy = self._policy
        exact = policy.precision is Precision.float32 and self._server.dtype is torch.float32
        request = Request(probe_prompts(probe(policy)), GROUP, Sampling(), COMPLETION)
        rollout = make_rollout(policy, request, self.generate(request))
        expected = completion_logprobs(policy, rollout.sequences, ForwardSettings())
        error = float((rollout.sampler_logprobs - expected)[rollout.sequences.mask].abs().mean())
        if not error < (EXACT if exact else ROUNDED):
            raise UserError(
                f"engine is {self.name}, whose log-probs of this model differ from those of the training forward by "
                f"{error:.2g} nats on average; choose engine=embedded or another model."
            )
