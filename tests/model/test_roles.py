"""LoRA roles: one frozen base, a reference without an adapter, a critic beside the actor, and the saved actor."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from bakeoff.learner.holdings import weight_bytes
from bakeoff.learner.learner import make_learner, renew_reference
from bakeoff.model.build import build
from bakeoff.model.forward import completion_values
from bakeoff.model.weights import save, weights_hash
from tests.conftest import compose
from tests.engine.test_embedded import prompts_of, rollout_of
from tests.model.test_forward import grouped
from tests.passes import completion_logits


def learner_of(*overrides):
    config = compose(*overrides, "tuned=none")
    actor = build(config.model, seed=3)
    actor.network.eval()
    return make_learner(config, actor)


def disturb(tensors):
    """Moves tensors as a step would: an adapter changes nothing until both of its halves have left zero."""
    with torch.no_grad():
        for tensor in tensors:
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)))


def test_a_new_adapter_changes_nothing_and_the_reference_is_the_actor_without_it(tiny):
    learner = learner_of("algorithm=grpo", "model.lora.rank=4")
    assert learner.reference.network is learner.actor.network, "no second copy"
    sequences = grouped(tiny)
    start = completion_logits(tiny, sequences)
    assert torch.allclose(completion_logits(learner.actor, sequences), start, atol=1e-6)
    disturb(learner.actor.parameters())
    assert not torch.allclose(completion_logits(learner.actor, sequences), start, atol=1e-2)
    assert torch.allclose(completion_logits(learner.reference, sequences), start, atol=1e-6)
    assert not torch.allclose(completion_logits(learner.actor, sequences), start, atol=1e-2), "the adapter is back"


def test_decoding_visits_the_adapters_once_and_not_for_every_token(monkeypatch):
    learner = learner_of("algorithm=grpo", "model.lora.rank=4")
    completion_logits(learner.reference, grouped(learner.actor))
    peft, visits = learner.actor.trunk.roles.model, []
    switch = peft.set_adapter
    monkeypatch.setattr(peft, "set_adapter", lambda role: (visits.append(role), switch(role)))
    rollout_of(learner.actor, prompts_of(learner.actor, "12="), completions=2, max_tokens=8)
    assert visits == ["actor"]


def test_only_the_adapter_is_trained():
    learner = learner_of("algorithm=grpo", "model.lora.rank=4")
    trained = learner.actor.trained()
    assert all("lora_" in name for name in trained)
    assert len(trained) == 2 * 7 * 2, "A and B of seven linear layers in two blocks"
    frozen = [p for n, p in learner.actor.network.named_parameters() if "lora_" not in n]
    assert not any(p.requires_grad for p in frozen)


@pytest.mark.parametrize("lora", [0, 4])
def test_an_adapter_critic_changes_neither_actor_nor_reference(lora, tiny):
    learner = learner_of("algorithm=ppo", "algorithm/critic=adapter", f"model.lora.rank={lora}")
    sequences = grouped(tiny)
    before = [completion_logits(policy, sequences).detach() for policy in (learner.actor, learner.reference)]
    completion_values(learner.critic, sequences).square().sum().backward()
    disturb(learner.critic.trained().values())
    values = completion_values(learner.critic, sequences)
    assert values[sequences.mask].std() > 0
    for policy, logits in zip((learner.actor, learner.reference), before, strict=True):
        assert torch.allclose(completion_logits(policy, sequences), logits, atol=1e-6)
    sizes = weight_bytes(learner)
    assert sizes["critic"] == sum(p.nbytes for p in learner.critic.trained().values())
    assert sizes["critic"] < sizes["actor"], "an adapter and a head, no second backbone"
    assert (sizes["reference"] == 0) == (lora > 0)
    base = learner.actor if lora else learner.reference
    assert learner.critic.trunk.backbone is base.network.base_model


def test_gradients_of_the_critic_do_not_reach_the_actor(tiny):
    learner = learner_of("algorithm=ppo", "algorithm/critic=adapter", "model.lora.rank=4")
    sequences = grouped(tiny)
    disturb(learner.critic.trained().values())
    completion_values(learner.critic, sequences).sum().backward()
    assert all(p.grad is None for p in learner.actor.parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in learner.critic.trained().values())


def test_a_renewed_reference_stays_the_actor_of_that_moment(tiny):
    for lora in (0, 4):
        learner = learner_of("algorithm=grpo_iterative", f"model.lora.rank={lora}")
        disturb(learner.actor.parameters())
        renew_reference(learner)
        sequences = grouped(tiny)
        then = completion_logits(learner.actor, sequences).detach()
        disturb(learner.actor.parameters())
        assert torch.allclose(completion_logits(learner.reference, sequences), then, atol=1e-6)
        assert not torch.allclose(completion_logits(learner.actor, sequences), then, atol=1e-2)


def test_an_outer_iteration_ends_after_its_number_of_updates():
    learner = learner_of("algorithm=grpo_iterative", "algorithm.kl_to_reference.iteration_updates=3")
    ends = []
    for learner.counters.updates in range(1, 8):
        ends.append(learner.iteration_ends)
    assert ends == [False, False, True, False, False, True, False]
    assert not learner_of("algorithm=grpo").iteration_ends


def test_a_saved_actor_has_its_adapter_merged(tiny, tmp_path):
    learner = learner_of("algorithm=grpo", "model.lora.rank=4")
    disturb(learner.actor.parameters())
    sequences = grouped(tiny)
    expected = completion_logits(learner.actor, sequences)
    hash_before = weights_hash(learner.actor.network)
    save(learner.actor, tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    width = sequences.prompt_width
    rows = sequences.attention[:, :width].all(1)  # unpadded prompts: the plain model needs no mask
    logits = opened(input_ids=sequences.ids[rows, :-1]).logits[:, width - 1 :]
    assert torch.allclose(logits[sequences.mask[rows]], expected[rows][sequences.mask[rows]], atol=1e-4)
    assert weights_hash(learner.actor.network) == hash_before, "saving must not merge the running actor's adapter"
