"""Forward passes: encoding a group's prompt once changes no log-prob, no value and no gradient."""

import pytest
import torch

from bakeoff.batch import Example, Sequences
from bakeoff.engine.check import check_model
from bakeoff.engine.embedded import Embedded
from bakeoff.engine.engine import Request, Sampling, make_rollout
from bakeoff.errors import UserError
from bakeoff.model.build import build
from bakeoff.model.encode import encode
from bakeoff.model.forward import completion_values
from bakeoff.model.logprobs import token_logprobs
from bakeoff.model.value import separate_model
from bakeoff.rows import group_rows, select
from tests.conftest import compose
from tests.passes import completion_logits

GROUP = 4


def grouped(policy, width=8) -> Sequences:
    """Four completions of each of three prompts of unequal length."""
    prompts = encode(policy, [Example(text, "") for text in ("12=", "4829103758=", "7=")], [])
    engine = Embedded()
    engine.load(policy)
    request = Request(prompts, GROUP, Sampling(), width)
    return make_rollout(policy, request, engine.generate(request)).sequences


def ungrouped(sequences: Sequences) -> Sequences:
    return Sequences(sequences.ids, sequences.attention, sequences.mask)


def loss(policy, sequences):
    logprobs = token_logprobs(completion_logits(policy, sequences), sequences.completion_ids)
    return (torch.where(sequences.mask, logprobs, 0.0) * torch.arange(sequences.mask.shape[1])).sum()


@pytest.mark.parametrize("width", [1, 2, 8])
def test_a_prompt_encoded_once_gives_the_same_logits(tiny, width):
    sequences = grouped(tiny, width)
    assert sequences.group_size == GROUP
    shared, alone = completion_logits(tiny, sequences), completion_logits(tiny, ungrouped(sequences))
    assert torch.allclose(shared[sequences.mask], alone[sequences.mask], atol=1e-5)


def test_a_shared_prompt_gives_the_gradients_of_separate_ones():
    policy = build(compose().model, seed=3)
    gradients = []
    for sequences in (grouped(policy), ungrouped(grouped(policy))):
        policy.network.zero_grad()
        loss(policy, sequences).backward()
        gradients.append([p.grad.clone() for p in policy.network.parameters()])
    for shared, alone in zip(*gradients, strict=True):
        assert alone.abs().max() > 0
        assert torch.allclose(shared, alone, rtol=1e-3, atol=1e-4)


def test_recomputed_activations_give_the_same_gradients():
    gradients = []
    for overrides in ([], ["model.gradient_checkpointing=true"]):
        policy = build(compose(*overrides).model, seed=3)
        policy.network.eval()
        sequences = grouped(policy)
        policy.network.train()
        loss(policy, sequences).backward()
        gradients.append([p.grad.clone() for p in policy.network.parameters()])
    for kept, recomputed in zip(*gradients, strict=True):
        assert torch.allclose(kept, recomputed, rtol=1e-3, atol=1e-4)


def test_a_shared_prompt_gives_a_critic_the_values_of_separate_ones(tiny):
    critic = separate_model(tiny, head_std=0.5)
    sequences = grouped(tiny)
    shared, alone = (completion_values(critic, each) for each in (sequences, ungrouped(sequences)))
    assert torch.allclose(shared[sequences.mask], alone[sequences.mask], atol=1e-5)
    assert shared.std() > 0


@pytest.mark.parametrize(("rows", "group"), [((0, 12), 4), ((4, 12), 4), ((0, 6), 2), ((6, 12), 2), ((3, 4), 1)])
def test_rows_that_cut_through_groups_form_smaller_groups_with_the_same_logits(tiny, rows, group):
    sequences = grouped(tiny)
    part = select(sequences, slice(*rows))
    assert part.group_size == group
    prompts = part.ids[:, : part.prompt_width].view(-1, group, part.prompt_width)
    assert (prompts == prompts[:, :1]).all()
    whole = completion_logits(tiny, sequences)[slice(*rows)]
    assert torch.allclose(completion_logits(tiny, part)[part.mask], whole[part.mask], atol=1e-5)


def test_selected_groups_keep_the_given_order(tiny):
    sequences = grouped(tiny)
    chosen = select(sequences, group_rows(torch.tensor([2, 0]), GROUP))
    assert torch.equal(chosen.ids, torch.cat([sequences.ids[8:12], sequences.ids[0:4]]))
    assert chosen.group_size == GROUP


@pytest.mark.parametrize(
    ("architecture", "values"),
    [("gemma2", {"head_dim": 16, "final_logit_softcapping": 0.1}), ("cohere", {"logit_scale": 0.5}),
     ("granite", {"logits_scaling": 4.0})],
)  # fmt: skip
def test_logits_of_scaled_and_capped_heads_are_the_networks_own(architecture, values):
    settings = {"model_type": architecture, **values}
    overrides = [f"++model.architecture.{key}={value}" for key, value in settings.items()]
    policy = build(compose("model.attention=eager", *overrides).model)
    ids = torch.tensor([[5, 6, 7]])
    hidden = policy.network.base_model(input_ids=ids).last_hidden_state
    assert torch.allclose(policy.logits(hidden), policy.network(input_ids=ids).logits, atol=1e-6)


def test_a_network_whose_logits_are_not_those_of_its_head_is_refused():
    policy = build(compose().model, seed=3)
    forward = policy.network.forward
    policy.network.forward = lambda **inputs: type("Out", (), {"logits": forward(**inputs).logits * 2})
    with pytest.raises(UserError, match=r"the output head differs"):
        check_model(policy, "odd")
