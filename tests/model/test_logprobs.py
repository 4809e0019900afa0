"""Log-probs in chunks have the values and gradients of the plain computation, and need less memory."""

import pytest
import torch

from bakeoff.algorithm import kl
from bakeoff.attribution import Label
from bakeoff.device import HOST
from bakeoff.measure.ledger import Ledger
from bakeoff.model.build import build
from bakeoff.model.forward import ForwardSettings, completion_hidden
from bakeoff.model.logprobs import (
    completion_logprobs,
    exact_kl,
    logprobs_and_kl,
    policy_pass,
    token_logprobs,
)
from bakeoff.model.value import value_head
from bakeoff.model.weights import frozen_copy
from tests.conftest import compose
from tests.model.test_forward import grouped
from tests.passes import completion_logits, plain_logprobs

CHUNK_MB = 5 * 19 * 4 / 1e6  # five tokens of 19 logits


@pytest.fixture
def policy():
    policy = build(compose().model, seed=3)
    policy.network.eval().double()
    return policy


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_chunked_logprobs_have_the_values_and_gradients_of_the_plain_computation(policy, temperature):
    sequences = grouped(policy)
    plain = plain_logprobs(policy, sequences, temperature)
    chunked = completion_logprobs(policy, sequences, ForwardSettings(temperature, logits_mb=CHUNK_MB))
    assert chunked.shape == plain.shape
    assert torch.allclose(chunked, plain, atol=1e-12)
    weights = torch.randn(plain.shape, dtype=plain.dtype, generator=torch.Generator().manual_seed(0))
    gradients = []
    for logprobs in (plain, chunked):
        gradients.append(torch.autograd.grad((logprobs * weights).sum(), list(policy.network.parameters())))
    assert max(g.abs().max() for g in gradients[0]) > 0.1
    for mine, its in zip(*gradients, strict=True):
        assert torch.allclose(mine, its, atol=1e-11)


@pytest.mark.parametrize("logits_mb", [0.0, CHUNK_MB])
def test_the_entropy_of_a_pass_has_the_values_and_gradients_of_its_definition(policy, logits_mb):
    sequences = grouped(policy)
    logs = completion_logits(policy, sequences, 0.7).log_softmax(-1)
    defined = torch.where(sequences.mask, -(logs.exp() * logs).sum(-1), 0)
    forward = ForwardSettings(0.7, 0, logits_mb)
    logprobs, entropy, _ = policy_pass(policy, None, sequences, forward, with_entropy=True)
    assert torch.allclose(entropy, defined, atol=1e-12)
    plain = plain_logprobs(policy, sequences, 0.7)
    weights = torch.randn(2, *plain.shape, dtype=plain.dtype, generator=torch.Generator().manual_seed(0))
    gradients = []
    for mine, other in ((logprobs, entropy), (plain, defined)):
        loss = (weights[0] * mine + weights[1] * other).sum()
        gradients.append(torch.autograd.grad(loss, list(policy.network.parameters())))
    for mine, its in zip(*gradients, strict=True):
        assert torch.allclose(mine, its, atol=1e-5)  # norms compute in float32, and the other side is of two passes


def test_logprobs_and_values_of_one_pass_are_those_of_separate_passes(policy):
    sequences, head = grouped(policy), value_head(policy, 0.5).double()
    logprobs, _, values = policy_pass(policy, head, sequences, ForwardSettings(logits_mb=CHUNK_MB))
    hidden = completion_hidden(policy.trunk, sequences)
    assert torch.equal(values, hidden.spread(head(hidden.states)))
    assert torch.allclose(logprobs, completion_logprobs(policy, sequences, ForwardSettings()), atol=1e-12)


@torch.no_grad()
def test_the_exact_kl_in_chunks_is_that_of_the_whole_logits(policy):
    sequences, other = grouped(policy), frozen_copy(policy)
    for parameter in policy.network.parameters():
        parameter.mul_(1.1)
    models, mask = (policy, other), sequences.mask
    logits, others = (completion_logits(model, sequences, 0.7) for model in models)
    hidden = [completion_hidden(model.trunk, sequences) for model in models]
    mine, its, divergence = logprobs_and_kl(policy, other, *hidden, ForwardSettings(0.7, 0, CHUNK_MB))
    assert torch.allclose(divergence, kl.exact(logits, others), atol=1e-12)  # of padding: of equal logits
    assert torch.equal(
        hidden[0].spread(exact_kl(policy, other, *hidden, ForwardSettings(0.7, 0, CHUNK_MB))), divergence
    )
    assert divergence.max() > 1e-3
    for found, model in zip((mine, its), models, strict=True):
        assert torch.allclose(found, plain_logprobs(model, sequences, 0.7), atol=1e-12)
        assert (found[mask] < 0).all()


def test_a_chunk_bounds_the_memory_of_the_logits():
    """With a vocabulary of 5000 tokens, logits take most of the memory of a pass."""
    config = compose("+model.architecture.vocab_size=5000")
    policy = build(config.model, seed=3)
    sequences = grouped(policy)
    whole = sequences.mask.numel() * 5000 * 4
    peaks = {}
    for limit in (0.0, 0.2):
        with Ledger(HOST, [(p, Label("actor", "parameters")) for p in policy.network.parameters()]) as ledger:
            completion_logprobs(policy, sequences, ForwardSettings(logits_mb=limit)).sum().backward()
        peaks[limit] = ledger.peak_cells.get(Label("actor", "logits"), 0), ledger.peak
        policy.network.zero_grad(set_to_none=True)
    assert peaks[0.0][1] > peaks[0.2][1] + whole
    assert peaks[0.2][0] < 3 * 0.2e6


@torch.no_grad()
def test_bfloat16_does_not_round_logits():
    """Near 64, bfloat16 has steps of 0.5; logits and log-probs keep float32's precision, unlike the passes above."""
    policy = build(compose("model.precision=bfloat16").model, seed=3)
    sequences = grouped(policy)
    hidden = completion_hidden(policy.trunk, sequences)
    states, head = hidden.states, policy.network.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight * 64 / (states @ head.weight.T).abs().max())  # no longer tied
    logits = policy.logits(states)
    assert torch.allclose(logits, states @ head.weight.T, atol=1e-4)
    assert logits.abs().max() == pytest.approx(64, abs=1e-3)
    assert (logits - logits.bfloat16()).abs().max() > 0.1, "rounding would show"
    logprobs = completion_logprobs(policy, sequences, ForwardSettings(logits_mb=CHUNK_MB))
    assert torch.allclose(logprobs, hidden.spread(token_logprobs(logits, hidden.ids)), atol=1e-4)
