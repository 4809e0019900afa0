"""Predictions against the ledger of real updates, for every method; sizes of known architectures."""

from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf
from torch._subclasses.fake_tensor import FakeTensorMode

from bakeoff.algorithm.optimizer import Trpo
from bakeoff.loop import update_once
from bakeoff.model.build import skeleton
from bakeoff.model.config import Model
from bakeoff.paths import CONF
from bakeoff.predict import predict
from bakeoff.predict_command import fits, largest
from bakeoff.savings import savings
from benchmarks.start import endless
from tests.conftest import compose, loop_of, update_of
from tests.test_every_method import METHODS
from tests.virtual_gpu import virtual_gpu

SMALL = [
    "tuned=none",
    "sft.steps=0",
    "batch.prompts=8",
    "batch.group_size=4",
    "task.heldout=4",
    "++model.architecture.num_hidden_layers=1",
]
OTHER = [
    f"++model.architecture.{key}={value}"
    for key, value in {
        "model_type": "qwen2",
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "vocab_size": 1500,
        "tie_word_embeddings": "false",
    }.items()
]
RUNS_A_MODEL = ("rollout", "experience", "actor_update", "fisher_product", "critic_update", "behaviour_kl", "measure")
SETTINGS = [
    ["algorithm=ppo", "algorithm/critic=shared"],
    ["algorithm=ppo", "algorithm/critic=adapter"],
    ["algorithm=ppo", "algorithm/critic=adapter", "model.lora.rank=8"],
    ["algorithm=grpo", "model.gradient_checkpointing=true", "model.lora.rank=8", "model.precision=bfloat16"],
    ["algorithm=ppo", "offload=true", "micro_tokens=400"],
    ["algorithm=grpo", "logits_mb=0.2", "micro_tokens=120"],
    ["algorithm=grpo", "algorithm/optimizer=adafactor"],
    ["algorithm=ppo", "model.precision=bfloat16_weights", "offload=true"],
    ["algorithm=grpo", "measure.kl_to_start=false", "batch.group_size=8"],
]


def compare(*overrides):
    """Largest relative error of a predicted peak in the second update, over the phases that run a model."""
    config = compose(*SMALL, *overrides)
    config.algorithm.critic.warmup_updates = 0
    config.algorithm.optimizer.epochs = 1  # a second epoch needs no more memory
    if isinstance(config.algorithm.optimizer, Trpo):
        config.algorithm.optimizer = replace(
            config.algorithm.optimizer, cg_iterations=3, backtracks=2, fisher_tokens=256
        )
    loop = endless(loop_of(config))
    update_once(loop)  # creates the state of the optimisers
    metrics = update_of(loop, traced=True)
    predicted = predict(config).peaks
    errors = {
        phase: predicted[phase].allocated / 1e6 / metrics[f"memory/{phase}_mb"] - 1
        for phase in RUNS_A_MODEL
        if f"memory/{phase}_mb" in metrics
    }
    assert {"rollout", "experience", "actor_update"} <= set(errors)
    return max(map(abs, errors.values()))


def held_by(method):
    """The choices that decide which models and states a method holds, and which passes it makes."""
    chosen = {k: v for c in OmegaConf.load(CONF / "algorithm" / f"{method}.yaml").defaults for k, v in c.items()}
    return (*(chosen[axis] for axis in HELD), chosen["baseline"] == "greedy")


HELD = ("group_filter", "critic", "kl_to_reference", "kl_to_behaviour", "entropy", "optimizer")


@pytest.mark.parametrize("method", {held_by(method): method for method in METHODS}.values())  # `make memory`: every one
def test_every_kind_of_method_is_predicted_within_five_percent(method):
    assert compare(f"algorithm={method}") < 0.05


@pytest.mark.parametrize("overrides", [["algorithm=ppo"], ["algorithm=trpo"], *SETTINGS], ids=lambda o: " ".join(o))
def test_another_model_is_predicted_within_five_percent_with_every_setting(overrides):
    """Grouped-query attention, untied embeddings, and a vocabulary whose logits take much of the memory."""
    assert compare(*OTHER, *overrides) < 0.05


def test_logits_are_bounded_as_on_the_device_that_is_predicted():
    """A device that is named, and one that this machine has."""

    def peak(*overrides):
        many = ("batch.prompts=64", "++model.architecture.vocab_size=100000")
        return predict(compose(*SMALL, "algorithm=grpo", *many, *overrides)).peak

    on_a_gpu = peak("logits_mb=1024")
    assert peak("device=cpu") == peak("logits_mb=128") < on_a_gpu
    assert peak("device=cpu", "hardware=h100") == on_a_gpu
    with virtual_gpu():
        assert peak("device=auto") == on_a_gpu
        assert peak("device=cpu") < on_a_gpu


def test_predicted_cells_sum_to_the_peak():
    for peak in predict(compose(*SMALL, "algorithm=ppo", "sft.steps=2")).peaks.values():
        assert sum(peak.cells.values()) == peak.allocated


def test_the_supervised_stage_and_the_reward_model_are_predicted():
    prediction = predict(compose(*SMALL, "algorithm=ppo", "sft.steps=2", "reward=learned"))
    assert prediction.peaks["sft"].cells["actor", "optimizer"] > 2 * prediction.weight_bytes["actor"] * 0.99
    assert prediction.peaks["reward"].cells["reward_model", "activations"] > 0


# Millions of parameters, as the models' cards and papers state them.
PUBLISHED = {
    "smollm2_135m": 134.5,
    "smollm2_360m": 361.8,
    "smollm2_1_7b": 1711.4,
    "qwen2_5_0_5b": 494.0,
    "qwen2_5_1_5b": 1543.7,
    "qwen2_5_3b": 3085.9,
    "qwen2_5_7b": 7615.6,
    "qwen2_5_14b": 14770.0,
    "qwen2_5_32b": 32763.9,
    "qwen2_5_72b": 72706.2,
    "qwen3_0_6b": 596.0,
    "qwen3_1_7b": 1720.6,
    "qwen3_4b": 4022.5,
    "qwen3_8b": 8190.7,
    "qwen3_14b": 14768.3,
    "qwen3_32b": 32762.1,
    "llama3_2_1b": 1235.8,
    "llama3_2_3b": 3212.7,
    "llama3_1_8b": 8030.3,
    "llama3_1_70b": 70553.7,
    "gemma2_2b": 2614.3,
    "gemma2_9b": 9241.7,
    "gemma2_27b": 27227.1,
    "gemma3_270m": 268.1,
    "gemma3_1b": 999.9,
}


def test_architectures_have_the_published_number_of_parameters():
    sizes = {}
    for path in (CONF / "model").glob("*.yaml"):
        file = OmegaConf.load(path)
        if path.stem not in ("hf", "tiny", "small"):
            model = Model(name="x", attention=file.get("attention", "sdpa"), architecture=dict(file.architecture))
            with FakeTensorMode():
                sizes[path.stem] = sum(p.numel() for p in skeleton(model).network.parameters()) / 1e6
    assert sizes == pytest.approx(PUBLISHED, abs=0.06)


def test_a_model_of_seventy_billion_parameters_is_predicted_without_its_weights():
    config = compose("model=llama3_1_70b", "task=largest", "algorithm=grpo", "batch.prompts=2", "batch.group_size=2")
    config.model.architecture["num_hidden_layers"] = 4  # of 80, to take seconds; embedding and head stay
    prediction = predict(config)
    assert prediction.weight_bytes["actor"] > 20e9
    assert prediction.peaks["actor_update"].cells["actor", "gradients"] > 10e9


def test_a_prediction_above_its_limit_raises_out_of_memory():
    with pytest.raises(torch.OutOfMemoryError):
        predict(compose(*SMALL, "algorithm=ppo"), limit=2e6)


def test_savings_are_predictions_of_cheaper_settings():
    two_layers = [*SMALL, "++model.architecture.num_hidden_layers=2"]  # recomputing one saves nothing
    config = compose(*two_layers, "algorithm=ppo")
    found = savings(config)
    assert [peak for _, peak in found] == sorted(peak for _, peak in found)
    settings = dict(found)
    assert "algorithm/critic=adapter" in settings
    setting = next(s for s in settings if s.startswith("micro_tokens="))
    assert settings[setting] == predict(compose(*two_layers, "algorithm=ppo", setting)).peak
    assert settings["model.gradient_checkpointing=true"] < predict(config).peak


def test_storing_a_frozen_base_in_bfloat16_saves_it_and_its_cast():
    own = [*SMALL, "algorithm=grpo", "model.lora.rank=2", "model.precision=bfloat16", "logits_mb=16"]
    found = dict(savings(compose(*own)))
    stored = "model.precision=bfloat16_weights"
    assert found[stored] == predict(compose(*own, stored)).peak
    trust_region = savings(compose(*own, "algorithm=trpo", "tuned=none"))
    assert stored not in dict(trust_region)


def test_what_fits_is_of_a_gpu_whose_chunks_of_logits_are_large():
    own = ["model=qwen2_5_0_5b", "++model.architecture.num_hidden_layers=1", "task=largest", "algorithm=reinforce"]
    own += ["tuned=none", "batch.prompts=4", "batch.group_size=4", "lengths.prompt=64", "lengths.completion=64"]
    small, large = (predict(compose("mode=predict", f"logits_mb={chunk}", *own)).peak for chunk in (128, 1024))
    assert small < large
    assert fits(own, large)
    assert not fits(own, large - 1)
    assert fits([*own, "logits_mb=128"], small)


def test_bisection_finds_the_largest_value_that_fits():
    values = [str(2**n) for n in range(8)]
    for limit in (0, 1, 5, 64, 1000):
        fitting = [v for v in values if int(v) <= limit]
        assert largest(values, lambda v, limit=limit: int(v) <= limit) == (fitting[-1] if fitting else "none")
