"""Prediction of memory and work: a run's own phases, run on tensors that have a shape and no values.

torch's FakeTensorMode does the bookkeeping of every operator without its arithmetic; the ledger traces it as it traces
a run. Nothing is loaded, and nothing is allocated but Python objects: 70 billion parameters take seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from bakeoff.algorithm.critic import OwnStep
from bakeoff.algorithm.optimizer import Adam, Optimizer, StepStatistics, Subproblem, Trpo
from bakeoff.attribution import Label, attributed
from bakeoff.batch import Experience, Sequences
from bakeoff.config import Config
from bakeoff.device import GPU, HOST, choose_device, logits_bound
from bakeoff.engine.engine import Engine, Request
from bakeoff.imagined import imagined_experience, imagined_prompts, imagined_rollout
from bakeoff.learner.experience import forward_passes
from bakeoff.learner.fisher import sequences_within
from bakeoff.learner.holdings import optimizer_tensors, weight_bytes, weights
from bakeoff.learner.learner import Learner, make_learner
from bakeoff.learner.offload import USES, place_for, visiting
from bakeoff.learner.reward_training import untrained
from bakeoff.learner.sft import demonstrations, held_weights, train_step
from bakeoff.learner.teacher import KEY, named_reference
from bakeoff.learner.update import measure_start, measure_step, update_actor, update_critic
from bakeoff.loop import Loop
from bakeoff.measure.phase import Peak, Phases, largest_peak
from bakeoff.measure.work import Operators, Work
from bakeoff.model.build import skeleton
from bakeoff.model.encode import encode, leave_out_long_prompts
from bakeoff.model.forward import ForwardSettings
from bakeoff.model.micro_batches import micro_batches
from bakeoff.model.policy import Policy
from bakeoff.randomness import stdlib_random
from bakeoff.rows import select
from bakeoff.start import collector_of

UNKNOWN_LENGTH = 512  # tokens of prompt and of completion, where none are given and there is no tokenizer to count them


class _NoValues(TorchDispatchMode):
    """Reads 1.0, 0 or false from a fake tensor: loops and statistics ask for numbers; memory depends on none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].dtype.is_floating_point else 0
        return func(*args, **(kwargs or {}))


def assumed_lengths(config: Config, policy: Policy) -> tuple[int, int]:
    """Tokens of the longest prompt and of the longest completion that a prediction assumes.

    For a completion of several turns these are the tokens that the policy may write. Only the environment knows the
    length of the replies between them: `lengths.completion` sets the sum of both.
    """
    prompt, completion = config.lengths.prompt, config.lengths.completion
    if not prompt and policy.tokenizer is not None:
        leave_out_long_prompts(policy, config.task)
        examples = config.task.training_examples(config.batch.prompts, stdlib_random(config.seed, "prompts", 0))
        prompt = encode(policy, examples, config.task.shot_examples()).ids.shape[1]
    if not completion and policy.tokenizer is not None:
        completion = config.task.max_tokens
    return prompt or UNKNOWN_LENGTH, completion or UNKNOWN_LENGTH


@dataclass
class Prediction:
    """Peaks and work by phase of an update that has optimiser state, bytes of weights by role, the lengths assumed."""

    peaks: dict[str, Peak]
    work: dict[str, Operators]
    weight_bytes: dict[str, int]
    prompt: int
    completion: int

    @property
    def peak(self) -> int:
        """The largest peak of the phases of training, in bytes."""
        return largest_peak(self.peaks)


def sizes_of(config: Config, prediction: Prediction) -> str:
    """The sizes that a prediction is made for, and those that it assumes."""
    batch = config.batch
    sizes = (
        f"{batch.prompts} prompts of {prediction.prompt} tokens, {batch.group_size} completions each of "
        f"{prediction.completion} tokens"
    )
    guessed = [
        f"lengths.{name}"
        for name in ("prompt", "completion")
        if not getattr(config.lengths, name) and getattr(prediction, name) == UNKNOWN_LENGTH
    ]
    why = "a guess, since the model's tokenizer is not on this machine; set them to the lengths of your task"
    return f"{sizes} ({' and '.join(guessed)}: {why})" if guessed else sizes


def predict(config: Config, limit: float = 0) -> Prediction:
    """The predicted peaks, work and weights of a run; with several processes, those of each.

    Raises UserError where the model cannot be built from a configuration, and torch.OutOfMemoryError as soon as more
    than `limit` bytes are needed (0: no limit).
    """
    config = replace(config, logits_mb=logits_bound(config.logits_mb, imagined_device(config)))
    count, bound = config.processes, 0 if config.shard else int(limit)
    config = replace(config, batch=replace(config.batch, prompts=math.ceil(config.batch.prompts / count)))
    with FakeTensorMode(allow_non_fake_inputs=True), _NoValues():
        policy = skeleton(config.model)
        policy.network.eval()
        prompt, completion = assumed_lengths(config, policy)
        phases = Phases(HOST)
        if config.sft.steps and policy.tokenizer is not None:
            supervised(config, policy, phases)
        learned = untrained(policy, 0) if config.reward.is_learned else None
        learner = make_learner(config, policy, learned, named_reference(config, policy, partial(skeleton, key=KEY)))
        for role, optimizer in learner.optimizers().items():
            with_state(role, optimizer)
        collector, heldout = collector_of(config), imagined_prompts(0, 0)
        if policy.tokenizer is not None:
            heldout = collector.prompts(policy, config.task.heldout_examples())
        loop = Loop(
            learner=learner,
            collector=collector,
            phases=phases,
            heldout=heldout,
            kl_sequences=config.measure.kl_sequences,
            offload=config.offload,
        )
        if config.offload:
            place_for(learner, "measure", HOST)  # the update before this one left these models on the device
        with loop.traced(bound), Work() as work:
            one_update(loop, prompt, completion, work, timed=bool(config.hardware.name))
        peaks = phases.take().peaks
        if config.shard:
            peaks = {phase: in_parts(learner, phase, peak, count) for phase, peak in peaks.items()}
            if 0 < limit < largest_peak(peaks):
                raise torch.OutOfMemoryError(f"{largest_peak(peaks) / 1e6:.1f} MB needed, {limit / 1e6:.1f} MB allowed")
        return Prediction(peaks, dict(work.phases), weight_bytes(learner), prompt, completion)


def imagined_device(config: Config) -> torch.device:
    """The device of the run, since all fake tensors are on the host: the named hardware, else one of this machine."""
    hardware = config.hardware
    if hardware.memory_gb:  # which only a GPU's file states
        return GPU
    return HOST if hardware.name else choose_device(config.device)


def in_parts(learner: Learner, phase: str, peak: Peak, count: int) -> Peak:
    """The peak where each of `count` processes holds its part of weights and optimisers, and gathers what it uses."""
    if phase not in USES:  # as of the supervised start, which the leader makes alone
        return peak
    cells, held = dict(peak.cells), weights(learner)
    for role in ("actor", "critic", "reference"):
        own, kept = Label(role, "parameters"), Label(role, "optimizer")
        part = sum(tensor.nbytes for tensor in held[role] if id(tensor) not in learner.masters) // count
        cells[own] = (cells.get(own, 0) if role in USES[phase] else 0) + part
        cells[kept] = cells.get(kept, 0) // count
    return Peak(peak.allocated + sum(cells.values()) - sum(peak.cells.values()), peak.reserved, cells)


def with_state(role: str, optimizer: torch.optim.Optimizer) -> None:
    """Lets the optimiser make its state, as its first step does."""
    with_gradients(role, optimizer)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def supervised(config: Config, policy: Policy, phases: Phases) -> None:
    """A step of the supervised stage that has optimiser state."""
    adam, forward = Adam(lr=config.sft.lr), ForwardSettings(logits_mb=config.logits_mb)
    optimizer = adam.create(policy.network.parameters())
    with_state("actor", optimizer)
    examples = config.task.training_examples(config.sft.batch, stdlib_random(config.sft.seed, "sft", 0))
    held = held_weights(policy) + [(t, Label("actor", "optimizer")) for t in optimizer_tensors(optimizer)]
    policy.network.train()
    with phases.tracing(held, policy.embedding), phases("sft"):
        train_step(policy, demonstrations(policy, config.task, examples), adam, optimizer, forward)
    policy.network.eval()


def one_update(loop: Loop, prompt: int, completion: int, work: Work, timed: bool) -> None:
    """The phases of an update on completions that use their whole budget.

    It runs one micro-batch of one minibatch in one epoch: later ones have the same peak, once there are gradients. Its
    work counts as often as a run would do it, the work of decoding only if the update is `timed`.
    """
    learner, forward = loop.learner, loop.learner.forward
    engine, batch = loop.collector.engine, loop.collector.batch
    algorithm, critic = learner.algorithm, learner.algorithm.critic

    def first(sequences: Sequences) -> slice:
        return next(micro_batches(sequences, forward))

    with loop.phase("rollout"):
        engine.load(learner.actor)
        prompts = imagined_prompts(batch.prompts, prompt)
        rounds = algorithm.group_filter.rounds
        request = Request(prompts, batch.group_size, loop.collector.sampling, completion)
        if timed:
            count_decoding(engine, request, rounds, work)
            if algorithm.baseline.needs_greedy:
                count_decoding(engine, replace(request, completions=1), 1, work)
        engine.trace_peak(request)
        rollout = imagined_rollout(batch, prompt, completion)
        others = [imagined_rollout(batch, prompt, completion) for _ in range(rounds)] if rounds > 1 else []
    sequences = select(rollout.sequences, first(rollout.sequences))
    passes = batch.sequences / len(sequences)
    greedy = batch.prompts / len(sequences) if algorithm.baseline.needs_greedy else 0
    with loop.phase("reward"), work.counted(passes * rounds + greedy, "reward"):
        if learner.reward_model is not None:
            learner.reward_model.score(sequences, forward)
    with loop.phase("experience"), work.counted(passes, "experience"):
        forward_passes(learner, sequences, loop.collector.exact_logprobs and not learner.older)
    experience = imagined_experience(learner, rollout)

    def micro_batch(role: str, option: Optimizer, optimizer: torch.optim.Optimizer) -> Experience:
        """A micro-batch of a minibatch; where there are several, earlier ones have left gradients."""
        minibatch = select(experience, slice(0, math.ceil(batch.prompts / option.minibatches) * batch.group_size))
        rows = first(minibatch.sequences)
        if rows.stop < len(minibatch):
            with_gradients(role, optimizer)
        return select(minibatch, rows)

    def one_step(option: Optimizer, part: Experience) -> OneStep:
        return OneStep(option=option, work=work, part=part.sequences, every=rollout.sequences)

    part = micro_batch("actor", algorithm.optimizer, learner.actor_optimizer)
    step = one_step(algorithm.optimizer, part)
    once = replace(learner, algorithm=replace(algorithm, optimizer=step))
    with loop.phase("actor_update"), work.counted(step.passes, "actor_update"):
        update_actor(once, part, torch.Generator(), partial(loop.phase, "fisher_product"))
    if isinstance(critic, OwnStep) and learner.critic_optimizer is not None:
        part = micro_batch("critic", critic.optimizer, learner.critic_optimizer)
        step = one_step(critic.optimizer, part)
        once = replace(learner, algorithm=replace(algorithm, critic=replace(critic, optimizer=step)))  # type: ignore[arg-type]
        with loop.phase("critic_update"), work.counted(step.passes, "critic_update"):
            update_critic(once, part, torch.Generator())
    adapts = algorithm.kl_to_behaviour.adapts
    read = select(rollout.sequences, slice(0, None if adapts else loop.kl_sequences or None))
    measured = first(read).stop
    if adapts:
        with loop.phase("behaviour_kl"), work.counted(passes, "behaviour_kl"):
            measure_step(learner, experience, measured)
    with loop.phase("measure"), work.counted(1, "measure"), visiting(learner, learner.start):
        if not adapts:
            with work.counted(len(read) / measured):
                measure_step(learner, experience, measured)
        with work.counted(passes):
            measure_start(learner, select(experience, first(rollout.sequences)))
    del others  # the groups that dynamic sampling kept, or left, live until here


def count_decoding(engine: Engine, request: Request, rounds: int, work: Work) -> None:
    """Counts the work of decoding: by the first token, the first two, and the first and the last.

    The work of a token grows linearly with its position. So all tokens after the first count as many times the mean of
    the second and the last. Each of the three runs reads the prompts and draws the first token: the first run counts
    1 − later times, so that they count once in all.
    """
    later = request.max_tokens - 1
    for tokens, times in [(1, 1 - later), (2, later / 2), (request.max_tokens, later / 2)] if later else [(1, 1)]:
        with work.counted(times * rounds, "rollout"):
            engine.trace_peak(replace(request, max_tokens=tokens))


@dataclass(kw_only=True)
class OneStep(Optimizer):
    """The option with one step per rollout, whose work counts as that of all steps.

    A trust-region step runs the fewest iterations and tries that reach its peak, and counts the most that it may take.

    option   the option itself
    part     the sequences of the step
    every    those of the rollout
    """

    option: Optimizer
    work: Work
    part: Sequences
    every: Sequences
    epochs: int = 1
    minibatches: int = 1

    @property
    def passes(self) -> float:
        """Number of times that the option's epochs read the step's sequences."""
        return self.option.epochs * len(self.every) / len(self.part)

    def __call__(self, problem: Subproblem) -> StepStatistics:
        option, work = self.option, self.work
        with work.counted(option.epochs * option.minibatches):
            if not isinstance(option, Trpo):
                return option(problem)
            iterations, tries = option.cg_iterations, option.backtracks
            # The brief step makes three products for iterations + 1, and two evaluations for 1 + tries. What it does
            # after each of them, on vectors alone, counts as often as the full step does it.
            after_product, after_evaluation = iter([iterations / 2, iterations / 2, 1.0]), iter([tries, 1.0])

            def product(vector: list[Tensor], tokens: int) -> list[Tensor]:
                read = sequences_within(self.every, tokens) / sequences_within(self.part, tokens)
                with work.counted(read * (iterations + 1) / 3, "fisher_product"):
                    image = problem.fisher_product(vector, tokens)  # type: ignore[misc]
                work.times = next(after_product)
                return image

            def evaluate() -> tuple[float, float]:
                with work.counted(self.passes * (1 + tries) / 2):
                    result = problem.evaluate()  # type: ignore[misc]
                work.times = next(after_evaluation)
                return result

            brief = replace(option, cg_iterations=2, backtracks=1)
            return brief(Subproblem(problem.optimizer, evaluate, product))


def with_gradients(role: str, optimizer: torch.optim.Optimizer) -> None:
    """Gives the parameters the gradients that an earlier micro-batch left."""
    with attributed(role, "gradients"):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
