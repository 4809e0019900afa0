"""Rollouts by vLLM, in this process. It has a copy of the weights, which it receives before every rollout.

vLLM is no dependency of bakeoff: `make vllm` sets up an environment with it for the CPU, `pip install vllm` adds it to
one with a GPU.
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from bakeoff.algorithm.divergence import require_finite
from bakeoff.engine.engine import Engine, Generated, Request, Sampling, make_rollout
from bakeoff.errors import UserError
from bakeoff.measure.allocator import has_allocator
from bakeoff.model.config import Precision
from bakeoff.model.encode import decoder
from bakeoff.randomness import derive
from bakeoff.ranges import VAST, number

if TYPE_CHECKING:
    from bakeoff.model.policy import Policy

INSTALL = "install it: `make vllm` for the CPU, `pip install vllm` on a GPU"
OTHERWISE = "engine=embedded needs no other library; with resume=DIR it resumes a run from its last checkpoint"
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process, where it can read the weights
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # training uses the same cores
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
# nats: mean differences of a token's log-prob from that of the training forward below which a model is the same
EXACT, ROUNDED = 1e-3, 0.2


class Passes(Enum):
    """Precision of vLLM's weights and passes.

    policy     float32 where the policy's is, else bfloat16
    float32    float32
    bfloat16   bfloat16
    """

    policy = "policy"
    float32 = "float32"
    bfloat16 = "bfloat16"


@dataclass
class Vllm(Engine):
    """Decodes with vLLM, one in a process, which later runs of the process with the same model use too.

    On a GPU its weights, keys and values leave the device while the learner works.

    precision   precision of vLLM's weights and passes
    cache_mb    memory of vLLM's keys and values
    """

    precision: Passes = Passes.policy
    cache_mb: float = number(1024.0, least=1, most=VAST, unit="MB")

    @torch.no_grad()
    def load(self, policy: Policy) -> None:
        """Sends all weights, those of an adapter merged into its base."""
        from bakeoff.model.weights import exported, weights_version  # late, as it imports transformers

        if isinstance(next(policy.network.parameters()), FakeTensor):  # a prediction
            return
        self._policy, self._version = policy, ""  # while weights are sent, there is no version of them
        with alive():
            self._server = server(policy, self.dtype(policy), self.cache_mb)
            self._server.take(exported(policy))
        self._version = weights_version(policy)
        if not self._server.checked:
            self.check()
            self._server.checked = True

    def dtype(self, policy: Policy) -> torch.dtype:
        """Precision of weights and passes."""
        exact = policy.precision is Precision.float32 and self.precision is Passes.policy
        return torch.float32 if exact or self.precision is Passes.float32 else torch.bfloat16

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
        from vllm import SamplingParams

        policy, prompts, sampling = self._policy, request.prompts, request.sampling
        longest, room = prompts.ids.shape[1] + request.max_tokens, self._server.llm.model_config.max_model_len
        if longest > room:
            raise UserError(
                f"engine.cache_mb is {self.cache_mb:g}, which holds keys and values of {room} tokens, but a prompt and "
                f"its completion may have {longest}; raise engine.cache_mb."
            )
        ends, first = policy.eos_ids.tolist(), request.first // request.completions
        copies = request.completions if request.greedy else 1  # vLLM takes one greedy completion of a prompt
        parameters = [
            SamplingParams(
                n=request.completions // copies,
                temperature=0.0 if request.greedy else sampling.temperature,
                top_k=0 if request.greedy else sampling.top_k,
                top_p=1.0 if request.greedy else sampling.top_p,
                seed=derive(request.seed, "completions of a prompt", first + number) >> 1,  # the n-th adds n
                max_tokens=request.max_tokens,
                ignore_eos=True,  # the policy defines the tokens that end a completion
                stop_token_ids=ends,
                stop=list(request.stop) or None,
                include_stop_str_in_output=True,
                detokenize=bool(request.stop),
                skip_special_tokens=False,
                logprobs=0,
                flat_logprobs=True,
            )
            for number in range(len(prompts.ids))
        ]
        read = [ids[shown].tolist() for ids, shown in zip(prompts.ids, prompts.attention, strict=True)]
        with alive():
            completions = [each for each in self._server.complete(read, parameters) for _ in range(copies)]
        self.require_stops(completions, request.stop)
        shape = len(completions), max(len(each.token_ids) for each in completions)
        ids = torch.full(shape, policy.tokenizer.pad_token_id)
        logprobs = torch.zeros(shape)
        for row, each in enumerate(completions):
            ids[row, : len(each.token_ids)] = torch.tensor(each.token_ids)
            logprobs[row, : len(each.token_ids)] = torch.tensor(each.logprobs.logprobs)
        if not torch.isfinite(logprobs).all():
            stop()  # its cache holds NaN, which a later run of this process would read
        require_finite(logprobs, "a log-probability of the policy that samples")
        return Generated(ids.to(policy.device), logprobs.to(policy.device), version=self._version)

    def require_stops(self, completions: list[Any], stop: tuple[str, ...]) -> None:
        """Raises UserError where a completion ends at a stop string that its text, as the tokenizer has it, lacks."""
        decode = decoder(self._policy)
        for each in completions:
            if isinstance(each.stop_reason, str) and not any(end in decode(list(each.token_ids)) for end in stop):
                raise UserError(
                    f"engine is vllm, which ends a completion at {each.stop_reason!r}, but the tokenizer's text has no "
                    "such string; choose another stop string of the task, or engine=embedded."
                )

    def rest(self) -> None:
        """On a GPU, frees the memory of weights, keys and values until the next `load`."""
        server = self._server
        if server.sleeps and server.awake:
            self._version = ""
            with alive():
                server.llm.sleep(level=2)
            server.awake = False

    def check(self) -> None:
        """Raises UserError where vLLM's model is not the policy's: it may read a configuration otherwise."""
        from bakeoff.engine.check import COMPLETION, GROUP, probe, probe_prompts
        from bakeoff.model.forward import ForwardSettings
        from bakeoff.model.logprobs import completion_logprobs

        policy = self._policy
        exact = policy.precision is Precision.float32 and self.dtype(policy) is torch.float32
        request = Request(probe_prompts(probe(policy)), GROUP, Sampling(), COMPLETION)
        rollout = make_rollout(policy, request, self.generate(request))
        expected = completion_logprobs(policy, rollout.sequences, ForwardSettings())
        error = float((rollout.sampler_logprobs - expected)[rollout.sequences.mask].abs().mean())
        if not error < (EXACT if exact else ROUNDED):
            raise UserError(
                "engine is vllm, whose log-probs of this model differ from those of the training forward by "
                f"{error:.2g} nats on average; choose engine=embedded or another model."
            )


@dataclass
class Server:
    """A vLLM with a model of the policy's configuration.

    llm       vllm.LLM
    folder    of configuration and tokenizer, which vLLM reads; weights are sent to it
    sleeps    whether its memory can be freed: on a GPU
    checked   whether its model is known to be the policy's
    """

    llm: Any
    folder: tempfile.TemporaryDirectory[str]
    sleeps: bool
    awake: bool = True
    checked: bool = False

    def take(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """Takes its memory again, where it rests, and new weights."""
        if not self.awake:
            self.llm.wake_up()
            self.awake = True
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        self.llm.apply_model(renew_heads)

    def complete(self, prompts: list[list[int]], parameters: list[Any]) -> list[Any]:
        """The completions of each prompt, one after another.

        The cache of earlier prompts is emptied: it may be of older weights, and equal requests must compute alike.
        """
        self.llm.reset_prefix_cache()
        asked = [{"prompt_token_ids": ids} for ids in prompts]
        found = self.llm.generate(asked, parameters, use_tqdm=False)
        return [each for one in found for each in sorted(one.outputs, key=lambda each: each.index)]


def renew_heads(model: nn.Module) -> None:
    """Packs the output embeddings again: vLLM keeps a packed copy on a CPU, and of a tied one it does not renew it."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for layer in model.modules():
        if isinstance(layer, ParallelLMHead):
            layer.quant_method.process_weights_after_loading(layer)


RUNNING: dict[Any, Server] = {}  # at most one: vLLM holds state of the whole process


def server(policy: Policy, dtype: torch.dtype, cache_mb: float) -> Server:
    """The running server of this model, or a new one in the place of another."""
    vocabulary = hash(frozenset(policy.tokenizer.get_vocab().items()))
    key = (policy.network.config.to_json_string(), vocabulary, policy.device, dtype, cache_mb)
    if key not in RUNNING:
        stop()
        RUNNING[key] = started(policy, dtype, cache_mb)
    return RUNNING[key]


def started(policy: Policy, dtype: torch.dtype, cache_mb: float) -> Server:
    """A new server, whose weights are arbitrary; raises UserError where there can be none."""
    require_vllm()
    if torch.distributed.is_initialized():
        raise UserError(
            "engine is vllm, which has a process group of its own, but this run has one already; choose "
            "engine=embedded or one process."
        )
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from vllm import LLM

    folder, sleeps = tempfile.TemporaryDirectory(prefix="bakeoff_vllm_"), has_allocator(policy.device)
    config = copy.deepcopy(policy.network.config)
    config.architectures = [type(policy.network).__name__]
    config.save_pretrained(folder.name)
    policy.tokenizer.save_pretrained(folder.name)
    threads, set_threads = torch.get_num_threads(), torch.set_num_threads
    try:
        with torch.random.fork_rng(devices=[]):  # it seeds the process
            llm = LLM(
                folder.name,
                load_format="dummy",
                dtype=str(dtype).removeprefix("torch."),
                max_model_len=-1,  # as many tokens as the model has positions and the cache has room
                kv_cache_memory_bytes=int(cache_mb * 1e6),
                gpu_memory_utilization=0.01,  # checked against free memory, but unused beside the line above
                enforce_eager=True,
                enable_chunked_prefill=sleeps,  # a CPU cannot wind back the generator of a prompt that is half read
                enable_sleep_mode=sleeps,
                logprobs_mode="processed_logprobs",
                generation_config="vllm",
            )
    finally:
        torch.set_num_threads = set_threads  # which it replaces on a CPU
        torch.set_num_threads(threads)
    return Server(llm, folder, sleeps)


def stop() -> None:
    """Ends the running server, if there is one."""
    if RUNNING:
        from vllm.distributed import cleanup_dist_env_and_memory

        for each in RUNNING.values():
            each.llm.llm_engine.engine_core.shutdown()
        RUNNING.clear()
        cleanup_dist_env_and_memory()


def require_vllm() -> None:
    """Raises UserError where vLLM is not installed."""
    if find_spec("vllm") is None:
        raise UserError(f"engine is vllm, which is not installed; {INSTALL}; or choose engine=embedded.")


@contextmanager
def alive() -> Iterator[None]:
    """Turns whatever ends vLLM into a UserError; the next `load` starts another one."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        with suppress(Exception):
            stop()
        RUNNING.clear()
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"engine is vllm, which ended with {type(error).__name__} ({reason}); {OTHERWISE}; where memory is short, "
            "lower engine.cache_mb."
        ) from error
