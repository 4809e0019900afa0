"""Rollouts by vLLM in this process. vLLM is no dependency of bakeoff.

`make vllm` sets up an environment with it for the CPU, `pip install vllm` adds it to one with a GPU.
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from bakeoff.engine.vllm_requests import OTHERWISE, Completion, Server, VllmEngine
from bakeoff.engine.vllm_worker import renew_heads
from bakeoff.errors import UserError
from bakeoff.measure.memory import has_allocator
from bakeoff.model.config import Precision
from bakeoff.ranges import VAST, number

if TYPE_CHECKING:
    from bakeoff.model.policy import Policy

INSTALL = "install it: `make vllm` for the CPU, `pip install vllm` on a GPU"
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process, where it can read the weights
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # training uses the same cores
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


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
class Vllm(VllmEngine):
    """Decodes with vLLM, one in a process, which later runs of the process with the same model use too.

    On a GPU its weights, keys and values leave the device while the learner works.

    precision   precision of vLLM's weights and passes
    cache_mb    memory of vLLM's keys and values
    """

    name: ClassVar[str] = "vllm"

    precision: Passes = Passes.policy
    cache_mb: float = number(1024.0, least=1, most=VAST, unit="MB")

    def connect(self, policy: Policy) -> InProcess:
        """The vLLM of this process, which has a model of the policy's configuration."""
        return server(policy, self.dtype(policy), self.cache_mb)

    def alive(self) -> AbstractContextManager[None]:
        """Turns whatever ends vLLM into a UserError."""
        return alive()

    def no_room(self, tokens: int) -> str:
        """A sentence that the cache has no room for this number of tokens, and what gives it more."""
        return (
            f"engine.cache_mb is {self.cache_mb:g}, which holds keys and values of {self._server.room} tokens, but a "
            f"prompt and its completion may have {tokens}; raise engine.cache_mb."
        )

    def dtype(self, policy: Policy) -> torch.dtype:
        """Precision of weights and passes."""
        exact = policy.precision is Precision.float32 and self.precision is Passes.policy
        return torch.float32 if exact or self.precision is Passes.float32 else torch.bfloat16


@dataclass
class InProcess(Server):
    """A vLLM with a model of the policy's configuration, in this process.

    llm       vllm.LLM
    folder    of configuration and tokenizer, which vLLM reads; weights are sent to it
    sleeps    whether its memory can be freed: on a GPU
    """

    llm: Any
    folder: tempfile.TemporaryDirectory[str]
    sleeps: bool
    awake: bool = True

    def take(self, policy: Policy) -> None:
        """Wakes vLLM where it sleeps, and loads the policy's weights into it."""
        from bakeoff.model.weights import exported  # late, as it imports transformers

        if not self.awake:
            self.llm.wake_up()
            self.awake = True
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": exported(policy)})
        self.llm.apply_model(renew_heads)

    def complete(self, prompts: list[list[int]], parameters: list[dict[str, Any]]) -> list[Completion]:
        """The completions of each prompt, one after another, with the weights that it took last."""
        from vllm import SamplingParams

        self.llm.reset_prefix_cache()
        asked = [{"prompt_token_ids": ids} for ids in prompts]
        sampled = [SamplingParams(**each, flat_logprobs=True) for each in parameters]
        found = self.llm.generate(asked, sampled, use_tqdm=False)
        outputs = [each for one in found for each in sorted(one.outputs, key=lambda each: each.index)]
        return [Completion(list(each.token_ids), list(each.logprobs.logprobs), each.stop_reason) for each in outputs]

    def rest(self) -> bool:
        """On a GPU, frees the memory of weights, keys and values; whether it did."""
        if not (self.sleeps and self.awake):
            return False
        self.llm.sleep(level=2)
        self.awake = False
        return True

    def clear(self) -> None:
        """Ends it; the next `load` starts another."""
        stop()


RUNNING: dict[Any, InProcess] = {}  # at most one: vLLM holds state of the whole process


def server(policy: Policy, dtype: torch.dtype, cache_mb: float) -> InProcess:
    """The running server of this model, or a new one in the place of another."""
    vocabulary = hash(frozenset(policy.tokenizer.get_vocab().items()))
    key = (policy.network.config.to_json_string(), vocabulary, policy.device, dtype, cache_mb)
    if key not in RUNNING:
        stop()
        RUNNING[key] = started(policy, dtype, cache_mb)
    return RUNNING[key]


def started(policy: Policy, dtype: torch.dtype, cache_mb: float) -> InProcess:
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
    return InProcess(dtype, llm.model_config.max_model_len, llm, folder, sleeps)


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
