"""Fisher products against the explicit matrix of a tiny model, with fused attention, and trust-region updates."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from bakeoff.algorithm.kl import exact
from bakeoff.learner.fisher import fisher_product, logits_tangent, sequences_within
from bakeoff.learner.holdings import held
from bakeoff.learner.update import actor_subproblem, update_actor, update_critic
from bakeoff.measure.phase import Phases
from bakeoff.model.build import build
from bakeoff.model.forward import ForwardSettings
from bakeoff.model.weights import weights_hash
from tests.conftest import compose
from tests.learner.test_update import CPU, draws, prepared, update
from tests.model.test_forward import grouped, ungrouped
from tests.model.test_logprobs import CHUNK_MB
from tests.passes import completion_logits

SMALL = [
    "model.architecture.hidden_size=4", "model.architecture.intermediate_size=5",
    "model.architecture.num_attention_heads=2", "model.architecture.num_key_value_heads=1",
    "model.architecture.num_hidden_layers=1",
]  # fmt: skip


@pytest.fixture(scope="module", params=["true", "false"], ids=["tied", "untied"])
def small(request):
    """A Llama of about 300 weights in float64, with tied or untied embeddings."""
    policy = build(compose(*SMALL, f"model.architecture.tie_word_embeddings={request.param}").model, seed=1)
    policy.network.eval().double()
    return policy


@pytest.mark.parametrize("shared_prompt", [True, False])
def test_a_fisher_product_is_that_of_the_explicit_matrix(small, shared_prompt):
    sequences = grouped(small, 3) if shared_prompt else ungrouped(grouped(small, 3))
    parameters = small.parameters()
    with sdpa_kernel(SDPBackend.MATH):
        rows = []
        logits = completion_logits(small, sequences, 0.7)
        for index in sequences.mask.nonzero().tolist():
            for token in range(logits.shape[-1]):
                out = logits[index[0], index[1], token]
                rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(out, parameters, retain_graph=True)]))
    jacobian = torch.stack(rows).view(int(sequences.mask.sum()), logits.shape[-1], -1)
    p = logits[sequences.mask].softmax(-1).detach()
    hessian = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    fisher = torch.einsum("nvi,nvw,nwj->ij", jacobian, hessian, jacobian) / len(p)
    draw = torch.Generator().manual_seed(0)
    vector = [torch.randn(q.shape, generator=draw, dtype=torch.float64) for q in parameters]
    expected = fisher @ torch.cat([v.flatten() for v in vector])
    for micro_tokens in (0, 20):
        product = fisher_product(small, sequences, vector, ForwardSettings(0.7, micro_tokens))
        assert torch.allclose(torch.cat([x.flatten() for x in product]), expected, atol=1e-9)
    assert expected.abs().max() > 1e-3


def test_tangents_are_directional_derivatives(small):
    sequences, step = grouped(small, 3), 1e-3  # norms compute in float32: a smaller step would measure rounding
    names = [name for name, _ in small.network.named_parameters()]
    torch.manual_seed(0)
    vector = [torch.randn_like(q) for q in small.parameters()]
    tangent = logits_tangent(small, sequences, {f"network.{n}": v for n, v in zip(names, vector, strict=True)}, 1.0)
    moved = []
    for sign in (1, -1):
        for q, v in zip(small.parameters(), vector, strict=True):
            q.data.add_(v, alpha=sign * step)
        moved.append(completion_logits(small, sequences)[sequences.mask].detach())
        for q, v in zip(small.parameters(), vector, strict=True):
            q.data.add_(v, alpha=-sign * step)
    slope = (moved[0] - moved[1]) / (2 * step)
    assert (tangent - slope).abs().max() < 0.02 * slope.abs().max()


def test_the_token_bound_keeps_the_first_sequences_that_fit(tiny):
    sequences = grouped(tiny)
    width = sequences.mask.shape[1]
    assert sequences_within(sequences, 0) == 12
    assert sequences_within(sequences, 1) == 1, "at least one"
    assert sequences_within(sequences, 5 * width) == 5
    assert sequences_within(sequences, 5 * width - 1) == 4
    assert sequences_within(sequences, 99 * width) == 12


@pytest.mark.parametrize(
    "overrides",
    [[], ["model.lora.rank=2"], ["model.precision=bfloat16"], ["model.gradient_checkpointing=true"]],
    ids=lambda o: " ".join(o) or "plain",
)
def test_the_kl_of_a_trust_region_update_is_within_its_bound(overrides):
    whole = ["algorithm.optimizer.max_kl=0.005", "algorithm.optimizer.lr=1"]
    learner, experience, _ = prepared("algorithm=trpo", *whole, *overrides)
    before = {name: tensor.clone() for name, tensor in learner.actor.trained().items()}
    learner.forward.micro_tokens = 64
    (taken,), _ = update(learner, experience)
    assert taken.step.accepted == 1
    assert 0 < taken.step.step_kl <= 0.005
    assert taken.step.actual_improvement > 0
    assert taken.step.cg_residual < 1
    after = learner.actor.trained()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_rejected_trust_region_step_leaves_the_actor_unchanged():
    """A step of 100 nats is tried once: there the quadratic KL says nothing."""
    far = ["algorithm.optimizer.max_kl=100", "algorithm.optimizer.backtracks=1", "algorithm.optimizer.lr=1"]
    learner, experience, _ = prepared("algorithm=trpo", *far)
    before = weights_hash(learner.actor.network)
    (taken,), _ = update(learner, experience)
    assert taken.step.accepted == 0
    assert weights_hash(learner.actor.network) == before


def test_the_subproblem_evaluates_at_the_current_parameters():
    learner, experience, _ = prepared("algorithm=trpo")
    learner.forward.micro_tokens = 40
    problem = actor_subproblem(learner, experience, nullcontext)
    loss, kl = problem.evaluate()
    assert kl == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        for parameter in learner.actor.parameters():
            parameter.mul_(1.05)
    moved, kl = problem.evaluate()
    assert moved != loss
    assert kl > 1e-5


@pytest.mark.parametrize("overrides", [[], ["model.lora.rank=2"], ["algorithm/entropy=bonus"]], ids=" ".join)
@pytest.mark.parametrize("logits_mb", [0.0, CHUNK_MB])
def test_the_subproblem_has_the_exact_kl_from_the_policy_of_its_first_evaluation(overrides, logits_mb):
    learner, experience, _ = prepared("algorithm=trpo", *overrides)
    learner.forward.logits_mb, mask = logits_mb, experience.sequences.mask
    before = completion_logits(learner.actor, experience.sequences, 2.0)[mask].detach()
    losses = {}
    for micro_tokens in (0, 40):
        learner.forward.micro_tokens = micro_tokens
        problem = actor_subproblem(learner, experience, nullcontext)
        start, kl = problem.evaluate()
        assert kl == 0
        kept = [parameter.detach().clone() for parameter in learner.actor.parameters()]
        with torch.no_grad():
            for number, parameter in enumerate(learner.actor.parameters()):
                parameter.add_(0.03 * (1 + number % 3))
        losses[micro_tokens], kl = problem.evaluate()
        after = completion_logits(learner.actor, experience.sequences, 2.0)[mask].detach()
        assert kl == pytest.approx(exact(before, after).mean().item(), rel=1e-4)
        assert kl > 1e-5
        for parameter, was in zip(learner.actor.parameters(), kept, strict=True):
            parameter.data.copy_(was)
        assert problem.evaluate()[0] == pytest.approx(start, abs=1e-6)
    assert losses[0] == pytest.approx(losses[40], rel=1e-4)


def test_fisher_products_are_a_phase_of_their_own():
    learner, experience, _ = prepared("algorithm=trpo")
    phases, order = Phases(CPU), draws()
    with phases.tracing(held(learner)):
        with phases("actor_update"):
            update_actor(learner, experience, order, partial(phases, "fisher_product"))
        with phases("critic_update"):
            update_critic(learner, experience, order)
    measured = phases.take()
    assert {"actor_update", "fisher_product", "critic_update"} == set(measured.seconds) == set(measured.peaks)
