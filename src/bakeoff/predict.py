"""The memory of a run before there is one: its own phases, run on tensors that have a shape and no values.

torch's FakeTensorMode does every operator's bookkeeping without its arithmetic; the ledger follows as it follows a
run. Nothing is loaded, and nothing is allocated but Python objects: 70 billion parameters take seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from bakeoff.algorithm.critic import Adapter, OwnStep, Separate
from bakeoff.algorithm.step import Adam, Step, Trpo
from bakeoff.attribution import Label, attributed
from bakeoff.batch import Experience, Prompts, Rollout, Sequences
from bakeoff.config import Config
from bakeoff.device import HOST
from bakeoff.learner.experience import evaluate
from bakeoff.learner.offload import Offload
from bakeoff.learner.reward_model import untrained
from bakeoff.learner.sft import demonstrations, held_weights, train_step
from bakeoff.learner.state import Counters, Learner, make_learner, optimizer_tensors, passes_of
from bakeoff.learner.update import measure_step, update
from bakeoff.measure import TRAINING
from bakeoff.measure.phase import Peak, Phases
from bakeoff.model import Lora
from bakeoff.model.load import Policy, encode, skeleton
from bakeoff.randomness import stdlib_random
from bakeoff.reward import LEARNED
from bakeoff.rollout import Decoding

UNKNOWN_LENGTH = 512  # tokens of prompt and of completion, where there is no tokenizer to count them and none are given


class _NoValues(TorchDispatchMode):
    """A number asked of a fake tensor is 1.0, 0 or false: statistics and conditions of loops need one, memory none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].dtype.is_floating_point else 0
        return func(*args, **(kwargs or {}))


def lengths(config: Config, policy: Policy) -> tuple[int, int]:
    """Tokens of the longest prompt and of the longest completion that a prediction assumes."""
    prompt, completion = config.lengths.prompt, config.lengths.completion
    if not prompt and policy.tokenizer is not None:
        examples = config.task.training_examples(config.rollout.prompts, stdlib_random(config.seed, "prompts", 0))
        prompt = encode(policy, examples, config.task.shot_examples()).ids.shape[1]
    if not completion and policy.tokenizer is not None:
        completion = config.task.max_new_tokens
    return prompt or UNKNOWN_LENGTH, completion or UNKNOWN_LENGTH


@dataclass
class Prediction:
    """Peaks by phase of an update that has optimiser state, bytes of weights by role, and the lengths assumed."""

    peaks: dict[str, Peak]
    weight_bytes: dict[str, int]
    prompt: int
    completion: int

    @property
    def peak(self) -> int:
        """The largest peak of the phases of training, in bytes."""
        return max(peak.allocated for phase, peak in self.peaks.items() if phase in TRAINING)


def predict(config: Config, limit: float = 0) -> Prediction:
    """What a run of this configuration needs; raises UserError where its model cannot be built from a configuration.

    Raises torch.OutOfMemoryError as soon as it needs more than `limit` bytes (0: no limit).
    """
    # peft moves new adapters to the device on which they are already, by a swap that fake tensors do not know
    stays = mock.patch.object(nn.Module, "to", lambda module, *args, **kwargs: module)
    with FakeTensorMode(allow_non_fake_inputs=True), _NoValues(), stays:
        policy = skeleton(config.model)
        policy.network.eval()
        prompt, completion = lengths(config, policy)
        phases = Phases(HOST)
        if config.sft.steps and policy.tokenizer is not None:
            supervised(config, policy, phases)
        learned = untrained(policy, 0) if LEARNED in config.reward.functions else None
        learner = make_learner(config.algorithm, policy, config.model.lora, config.measure.kl_to_reference, 0, learned)
        for role, optimizer in learner.optimizers().items():
            with_state(role, optimizer)
        if config.offload:
            phases.before = Offload(learner, phases)
            phases.before("measure")  # what an update before this one left on the device
        held = [*learner.held(), *((tensor, Label()) for tensor in heldout_prompts(config, policy))]
        with phases.following(held, policy.embedding, int(limit)):
            one_update(config, learner, prompt, completion, phases)
        return Prediction(phases.take().peaks, learner.weight_bytes(), prompt, completion)


def heldout_prompts(config: Config, policy: Policy) -> tuple[Tensor, ...]:
    """What a run keeps of its held-out prompts; nothing where there is no tokenizer to encode them."""
    if policy.tokenizer is None:
        return ()
    prompts = encode(policy, config.task.heldout_examples(), config.task.shot_examples())
    return prompts.ids, prompts.attention


def with_state(role: str, optimizer: torch.optim.Optimizer) -> None:
    """Lets the optimiser make its state, as its first step does."""
    with_gradients(role, optimizer)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def supervised(config: Config, policy: Policy, phases: Phases) -> None:
    """A step of the supervised stage that has optimiser state."""
    adam = Adam(lr=config.sft.lr)
    optimizer = adam.optimizer(policy.network.parameters())
    with_state("actor", optimizer)
    examples = config.task.training_examples(config.sft.batch, stdlib_random(config.sft.seed, "sft", 0))
    held = held_weights(policy) + [(t, Label("actor", "optimizer")) for t in optimizer_tensors(optimizer)]
    policy.network.train()
    with phases.following(held, policy.embedding), phases("sft"):
        train_step(policy, demonstrations(policy, config.task, examples), adam, optimizer, config.logits_mb)
    policy.network.eval()


def one_update(config: Config, learner: Learner, prompt: int, completion: int, phases: Phases) -> None:
    """The phases of an update on completions that all use their budget.

    Of micro-batches, minibatches and epochs one is run: those that follow need what it needs, once there are gradients.
    """
    passes = replace(passes_of(config, phases), max_tokens=completion)
    prompts, size = config.rollout.prompts, config.rollout.group_size
    rounds = learner.algorithm.sampling.rounds
    with phases("rollout"):
        decode(config, learner.actor, prompts, prompt, completion)
        rollout = imagined_rollout(config, prompt, completion)
        others = [imagined_rollout(config, prompt, completion) for _ in range(rounds)] if rounds > 1 else []

    def read(sequences: int) -> int:
        """How many of so many sequences are read at once."""
        return min(sequences, config.micro_batch or sequences)

    with phases("reward"):
        if learner.reward_model is not None:
            learner.reward_model.score(rollout.sequences[: read(len(rollout.sequences))], config.micro_batch)
    with phases("experience"):
        evaluate(learner, rollout.sequences[: read(len(rollout.sequences))], passes)
    experience = imagined_experience(learner, rollout.sequences)

    def train(role: str, step: Step, optimizer: torch.optim.Optimizer, learner: Learner) -> None:
        minibatch = math.ceil(prompts / step.minibatches) * size
        if read(minibatch) < minibatch:
            with_gradients(role, optimizer)
        update(learner, experience[: read(minibatch)], passes, torch.Generator())

    step, critic = learner.algorithm.step, learner.algorithm.critic
    brief = {"cg_iterations": 2, "backtracks": 1} if isinstance(step, Trpo) else {}  # the others need no more memory
    once = replace(learner.algorithm, step=replace(step, epochs=1, minibatches=1, **brief))
    alone = replace(learner, algorithm=once, critic_optimizer=None, counters=Counters(critic.warmup_updates))
    train("actor", step, learner.actor_optimizer, alone)
    if isinstance(critic, OwnStep) and learner.critic_optimizer is not None:
        once = replace(once, critic=replace(critic, step=replace(critic.step, epochs=1, minibatches=1)))
        waiting = replace(learner, algorithm=once, counters=Counters(-1))  # before any update the actor waits
        train("critic", critic.step, learner.critic_optimizer, waiting)
    with phases("measure"):
        measure_step(learner, experience, read(config.measure.kl_sequences or len(experience)), passes)
    del others  # groups that dynamic sampling kept, or left, until here


def with_gradients(role: str, optimizer: torch.optim.Optimizer) -> None:
    """Gives the parameters the gradients that an earlier micro-batch left."""
    with attributed(role, "gradients"):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)


def decode(config: Config, policy: Policy, prompts: int, prompt: int, completion: int) -> None:
    """Reads the prompts and the last token: the cache is largest there."""
    size, draws = config.rollout.group_size, torch.Generator()
    asked = Prompts([], [], torch.zeros(prompts, prompt, dtype=torch.int64), torch.ones(prompts, prompt).bool())
    with torch.no_grad(), policy.trunk.computing():
        decoding = Decoding.begin(policy, asked, size, completion)
        token, _, _ = config.rollout.choose(decoding.hidden, policy, draws, greedy=False)
        if completion > 1:
            fill(decoding, completion - 2)
            decoding.advance(token, completion - 2)
            config.rollout.choose(decoding.hidden, policy, draws, greedy=False)


def imagined_rollout(config: Config, prompt: int, completion: int) -> Rollout:
    """What is left of a rollout when it has been decoded."""
    size = config.rollout.group_size
    shape = (config.rollout.sequences, completion)
    mask = torch.ones(shape, dtype=torch.bool)
    attention = torch.ones(shape[0], prompt + completion, dtype=torch.bool)
    return Rollout(
        examples=[],
        prompts=[],
        completions=[],
        group_size=size,
        sequences=Sequences(attention.long(), attention, mask, size),
        decode=lambda ids: "",
        sampler_logprobs=torch.zeros(shape),
        entropy=torch.zeros(shape),
        ended=mask[:, -1],
    )


def fill(decoding: Decoding, tokens: int) -> None:
    """Grows the cache by so many tokens that nobody read."""
    with attributed("actor", "kv_cache"):
        for layer in decoding.cache.layers:
            batch, heads, read, width = layer.keys.shape
            grown = read + tokens
            if layer.is_sliding:
                layer.cumulative_length += tokens
                grown = min(grown, layer.sliding_window - 1)
            for name in ("keys", "values"):
                old = getattr(layer, name)
                setattr(layer, name, old.new_empty(0))  # freed first: a real cache never holds both for all tokens
                setattr(layer, name, old.new_empty(batch, heads, grown, width))


def imagined_experience(learner: Learner, sequences: Sequences) -> Experience:
    """An experience of these sequences that has all that the method's has."""
    one = torch.zeros(sequences.mask.shape)
    valued = learner.algorithm.critic.exists
    return Experience(
        sequences=sequences,
        behaviour_logprobs=one,
        advantages=one.clone(),
        reference_logprobs=one.clone() if learner.reference is not None else None,
        values=one.clone() if valued else None,
        returns=one.clone() if valued else None,
    )


def savings(config: Config) -> list[tuple[str, int]]:
    """Settings that would lower the peak, with the peak in bytes that each would have alone; the lowest first."""
    found = [(setting, predict(changed).peak) for setting, changed in cheaper(config)]
    return sorted(found, key=lambda each: each[1])


def cheaper(config: Config) -> Iterator[tuple[str, Config]]:
    """The configuration with one setting changed to what costs less memory, and that setting as it is written."""
    algorithm, model = config.algorithm, config.model
    read = min(config.micro_batch or config.rollout.sequences, config.rollout.sequences)
    if read > 1:
        yield f"micro_batch={max(1, read // 4)}", replace(config, micro_batch=max(1, read // 4))
    if not model.gradient_checkpointing:
        yield (
            "model.gradient_checkpointing=true",
            replace(config, model=replace(model, gradient_checkpointing=True)),
        )
    if not config.logits_mb or config.logits_mb > 16:
        yield "logits_mb=16", replace(config, logits_mb=16)
    if not config.offload:
        yield "offload=true", replace(config, offload=True)
    if not model.lora.rank and not isinstance(algorithm.critic, Adapter):
        yield "model.lora.rank=16", replace(config, model=replace(model, lora=Lora(16)))
    if isinstance(algorithm.critic, Separate):
        critic = Adapter(step=algorithm.critic.step, head_std=algorithm.critic.head_std)
        yield "algorithm/critic=adapter", replace(config, algorithm=replace(algorithm, critic=critic))
