"""One update, in the order of its data: prompts → rollout → scores → experience → steps. Every method uses it.

This module opens every phase of an update: it places the models that the phase uses, then measures time and memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from bakeoff import processes
from bakeoff.algorithm.kl import KLEstimates
from bakeoff.algorithm.loss import Betas
from bakeoff.attribution import Label
from bakeoff.batch import Experience, Prompts, Rollout, Scores
from bakeoff.collector import Collector
from bakeoff.learner.experience import ExperienceStatistics, make_experience
from bakeoff.learner.holdings import held
from bakeoff.learner.learner import Learner, passes_over, renew_reference, sampling_policy, set_lr
from bakeoff.learner.offload import STEPS, USES, place_for, visiting
from bakeoff.learner.reward_training import PairQuality, Renewal
from bakeoff.learner.sft import Supervised
from bakeoff.learner.sharding import gathered
from bakeoff.learner.update import Step, measure_start, measure_step, update_actor, update_critic
from bakeoff.measure import TRAINING
from bakeoff.measure.phase import Measured, Phases
from bakeoff.model.policy import Policy
from bakeoff.randomness import derive, generator, stdlib_random
from bakeoff.reward.measure import UserMetrics
from bakeoff.rows import concatenate, group_rows, numbers, select


@dataclass
class Loop:
    """Everything that an update works with, in a run, a benchmark, a check and a prediction alike.

    learner          the method and its models
    collector        the source of scored completions
    phases           measures time and memory
    heldout          the prompts of evaluation
    kl_sequences     number of sequences on which the KL of an update is measured; 0: all, as where β adapts to it
    offload          whether models that a phase does not use wait in the host's memory
    reward_quality   held-out quality of the reward model, none where the reward is not learned
    renew_reward     (actor, update) → trains the reward model further when an outer iteration ends; none likewise
    sampling_price   work of a sampled token; one that a step reads has 1
    start            hash of the weights that training started from
    supervised       the supervised stage that made them, none where there was none
    user_metrics     the user's metrics of scored completions, none where there are none
    """

    learner: Learner
    collector: Collector
    phases: Phases
    heldout: Prompts
    kl_sequences: int = 0
    offload: bool = False
    reward_quality: PairQuality | None = None
    renew_reward: Callable[[Policy, int], Renewal] | None = None
    sampling_price: float = 1.0
    start: str = ""
    supervised: Supervised | None = None
    user_metrics: UserMetrics | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Places the models that a phase uses, measured as the phase `offload`, then measures the phase itself.

        Weights that the processes hold in parts are whole in it; the passes of a step gather them themselves.
        """
        if self.offload:
            with self.phases("offload"):
                place_for(self.learner, name, self.phases.device)
        with self.phases(name), gathered(self.learner.shards, USES.get(name, ()) if name not in STEPS else ()):
            yield

    def traced(self, limit: int = 0) -> AbstractContextManager[None]:
        """Traces memory by role and kind while the context is open.

        More live bytes than `limit` (0: no limit) raise torch.OutOfMemoryError.
        """
        prompts = [(self.heldout.ids, Label()), (self.heldout.attention, Label())]
        return self.phases.tracing([*held(self.learner), *prompts], self.learner.actor.embedding, limit)


@dataclass
class Collected:
    """Scored completions of one update.

    rollout, scores           those that the method learns from
    all_rollouts, all_scores  all that was sampled: the same, unless the method filters groups
    greedy                    [P] scores of greedy completions, none where no baseline asks for them
    sequences, tokens         number of completions and of their tokens, greedy ones included: the budget counts them
    rounds                    number of times that prompts were drawn
    """

    rollout: Rollout
    scores: Scores
    all_rollouts: Rollout
    all_scores: Scores
    greedy: Tensor | None
    sequences: int
    tokens: int
    rounds: int


@dataclass
class Update:
    """One update: what was sampled, how the models moved, what it cost.

    betas        the coefficients of KL and entropy that the update started with
    experience   its statistics; `reference` is the KL to the start, whatever reference the method has
    kl           KL(π_old‖π_θ) after the update
    renewal      of the reward model, at the end of an outer iteration
    measured     seconds and peak memory by phase
    """

    collected: Collected
    experience: ExperienceStatistics
    actor: list[Step]
    critic: list[Step]
    kl: KLEstimates
    lr: float
    betas: Betas
    renewal: Renewal | None
    measured: Measured

    @property
    def seconds(self) -> float:
        """Seconds of training."""
        return sum(self.measured.seconds.get(phase, 0.0) for phase in TRAINING)

    @property
    def cpu_seconds(self) -> float:
        """The same of all threads of the process."""
        return sum(self.measured.cpu_seconds.get(phase, 0.0) for phase in TRAINING)


def update_once(loop: Loop, progress: float = 0.0) -> Update:
    """Makes one update, from prompts to steps, and advances the counters; returns its parts and its cost.

    `progress` is the used share of the budget. Raises Diverged where a quantity is not finite.
    """
    learner, collector = loop.learner, loop.collector
    algorithm, number, seed = learner.algorithm, learner.counters.updates, collector.seed
    lr, betas = set_lr(learner, number, progress), Betas(**vars(learner.betas))
    with sampling_policy(learner):
        collected = collect(loop, number)
    experience, statistics = experience_of(loop, collected)
    draws = generator(learner.actor.device, seed, "minibatches", number)
    actor: list[Step] = []
    if number >= algorithm.critic.warmup_updates:
        with loop.phase("actor_update"):
            actor = update_actor(learner, experience, draws, partial(loop.phase, "fisher_product"))
    critic: list[Step] = []
    if algorithm.critic.takes_steps:
        with loop.phase("critic_update"):
            critic = update_critic(learner, experience, draws)
    if adapts := algorithm.kl_to_behaviour.adapts:  # the method's rule reads this KL, so that it is training
        with loop.phase("behaviour_kl"):
            kl = measure_step(learner, experience)
    with loop.phase("measure"), visiting(learner, learner.start):
        if not adapts:
            kl = measure_step(learner, experience, loop.kl_sequences)
        to_start = measure_start(learner, experience)
    tokens = experience.sequences.mask.sum()
    kl, statistics, to_start, tokens = processes.agreed(numbers((kl, statistics, to_start, tokens)))
    if actor:  # while the critic alone learns, the KL is zero and says nothing about a coefficient
        adapt_betas(learner, kl, statistics, len(experience))
    if not learner.reference_is_start:
        teacher = statistics.reference if algorithm.kl_to_reference.name else None
        statistics = replace(statistics, reference=to_start, reference_exact=None, teacher=teacher)
    learner.counters.updates += 1
    renewal = None
    if learner.iteration_ends:
        with loop.phase("renewal"):
            renew_reference(learner)
            renewal = loop.renew_reward(learner.actor, learner.counters.updates) if loop.renew_reward else None
    measured = processes.agreed(loop.phases.take())
    update = Update(collected, statistics, actor, critic, kl, lr, betas, renewal, measured)
    learner.counters.sequences += collected.sequences
    learner.counters.tokens += collected.tokens
    read = passes_over(algorithm, bool(actor)) * float(tokens)
    learner.counters.work += loop.sampling_price * collected.tokens + read
    learner.counters.seconds += update.seconds
    learner.counters.cpu_seconds += update.cpu_seconds
    return update


def experience_of(loop: Loop, collected: Collected) -> tuple[Experience, ExperienceStatistics]:
    """The experience of collected completions, and its statistics."""
    learner, exact = loop.learner, loop.collector.exact_logprobs and not loop.learner.older
    draws = generator(learner.actor.device, loop.collector.seed, "objective", learner.counters.updates)
    with loop.phase("experience"):
        loop.collector.engine.rest()
        return make_experience(learner, collected.rollout, collected.scores, collected.greedy, exact, draws)


def adapt_betas(learner: Learner, kl: KLEstimates, statistics: ExperienceStatistics, episodes: int) -> None:
    """Sets the coefficients of the next update from the KL and the entropy of this one."""
    algorithm, betas = learner.algorithm, learner.betas
    betas.behaviour = algorithm.kl_to_behaviour.adapt(betas.behaviour, float(kl.k3_per_token))
    if statistics.reference is not None:
        reference_kl = float(statistics.reference.k1_per_sequence)
        betas.reference = algorithm.kl_to_reference.adapt(betas.reference, reference_kl, episodes)
    if statistics.entropy is not None:
        betas.entropy = algorithm.entropy.adapt(betas.entropy, float(statistics.entropy))


def collect(loop: Loop, number: int) -> Collected:
    """Samples and scores the completions of update `number`, until the method has groups that it can learn from."""
    actor, collector, algorithm = loop.learner.actor, loop.collector, loop.learner.algorithm
    group_filter, batch = algorithm.group_filter, collector.batch
    torch.manual_seed(derive(collector.seed, "global", number))
    rollouts: list[Rollout] = []
    scores: list[Scores] = []
    kept: list[Tensor] = []
    while len(rollouts) < group_filter.rounds and sum(int(k.sum()) for k in kept) < batch.prompts:
        stream = f"/{len(rollouts)}" if rollouts else ""
        with loop.phase("rollout"):
            if not rollouts:
                collector.engine.load(actor)
            prompt_draws = stdlib_random(collector.seed, f"prompts{stream}", number)
            prompts = collector.prompts(actor, collector.task.training_examples(batch.prompts, prompt_draws))
            rollouts.append(collector.roll_out(actor, prompts, batch.group_size, f"rollout{stream}", number))
        with loop.phase("reward"):
            scores.append(collector.score(rollouts[-1], learned_scores(loop, rollouts[-1])))
            kept.append(group_filter(scores[-1].total.view(-1, batch.group_size)))
    every, all_scores = concatenate(rollouts), concatenate(scores)
    rollout, chosen = every, all_scores
    if len(rollouts) > 1:
        # Kept groups first, in the order in which they were sampled; the others fill up the batch.
        order = torch.argsort(torch.cat(kept).int(), descending=True, stable=True)[: batch.prompts]
        rows = group_rows(order, batch.group_size)
        rollout, chosen = select(every, rows), select(all_scores, rows)
    sequences, tokens = len(every.sequences), int(every.sequences.mask.sum())
    greedy = None
    if algorithm.baseline.needs_greedy:
        answers, greedy = greedy_scores(loop, rollout)
        sequences, tokens = sequences + len(answers.sequences), tokens + int(answers.sequences.mask.sum())
    return Collected(rollout, chosen, every, all_scores, greedy, sequences, tokens, len(rollouts))


def greedy_scores(loop: Loop, rollout: Rollout) -> tuple[Rollout, Tensor]:
    """One greedy completion of each prompt of the rollout, and its score with the method's shaping, [P]."""
    learner, collector = loop.learner, loop.collector
    with loop.phase("rollout"):
        prompts = collector.prompts(learner.actor, rollout.examples[:: rollout.group_size])
        answers = collector.roll_out(learner.actor, prompts, 1, "greedy", greedy=True)
    with loop.phase("reward"):
        shaped = learner.algorithm.shaping(answers.sequences.mask.sum(1), answers.max_tokens)
        return answers, collector.score(answers, learned_scores(loop, answers)).total + shaped


def learned_scores(loop: Loop, rollout: Rollout) -> Tensor | None:
    """The reward model's score of each completion [S], none where the reward is not learned."""
    model = loop.learner.reward_model
    return None if model is None else model.score(rollout.sequences, loop.learner.forward)
