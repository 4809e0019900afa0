"""Configurations: every shipped file composes, impossible ones are refused, and `config_id` identifies the rest."""

import re
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf.errors import OmegaConfBaseException

from bakeoff.algorithm import AXES
from bakeoff.errors import UserError
from bakeoff.identity import config_id, flatten, plain
from bakeoff.paths import CONF
from bakeoff.task import TASKS
from bakeoff.validation import compose as compose_anew
from tests.conftest import composed

TEACHER = ["algorithm/kl_to_reference=distillation", "algorithm.kl_to_reference.name=somewhere"]


def compose(*overrides):
    """As a command composes it; the other tests take `composed`, which composes each choice of groups once."""
    GlobalHydra.instance().clear()
    return compose_anew(overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        (
            "algorithm=ppo",
            "algorithm/critic=adapter",
            "tuned=none",
            "model.lora.rank=2",
            "++model.architecture.num_hidden_layers=1",
        ),
        ("reward.functions={format: 0.2, length: 0.1}", "~reward.functions.verifier", "seed=3"),
        ("sft.steps=2", "sft={steps: 3, batch: 8}", "budget={unit: updates, limit: 2}", "budget.limit=3"),
    ],
)
def test_the_configurations_of_the_tests_are_those_of_a_command(overrides):
    assert composed(overrides) == compose(*overrides)


@pytest.mark.parametrize("path", sorted((CONF / "algorithm").glob("*.yaml")), ids=lambda p: p.stem)
def test_an_algorithm_names_a_choice_on_each_axis_in_order_and_its_source(path):
    text = path.read_text()
    assert re.findall(r"^  - (\w+): \w+", text, re.MULTILINE) == list(AXES)
    assert re.match(r"# .*\d{4}", text), "the first line says what it is and from which paper"
    assert len(text.splitlines()) <= 17, "values stay with the option"


def test_the_distance_between_methods_is_what_the_design_says():
    def choices(name):
        return re.findall(r"^  - .*", (CONF / "algorithm" / f"{name}.yaml").read_text(), re.MULTILINE)

    def distance(a, b):
        return sum(x != y for x, y in zip(choices(a), choices(b), strict=True))

    assert distance("ppo", "ppo_kl") == 2
    assert distance("ppo", "grpo") == 6
    assert distance("reinforce", "rloo") == 1
    assert distance("ppo_penalty", "ppo_kl") == 1


@pytest.mark.parametrize("name", sorted(set(TASKS) - {"dataset"}))  # which needs a file
def test_every_task_composes(name):
    assert compose(f"task={name}").task.heldout > 0


@pytest.mark.parametrize("name", ["tiny", "smollm2_135m"])
def test_every_model_composes(name):
    assert compose(f"model={name}").model.name


def test_the_protocol_is_the_same_for_every_method():
    shared = [
        {k: v for k, v in flatten(plain(compose(f"algorithm={a}"))).items() if not k.startswith(("algorithm", "tuned"))}
        for a in ("ppo", "ppo_kl", "grpo")
    ]
    assert shared[0] == shared[1] == shared[2]


def test_config_id_ignores_the_seed_and_bookkeeping():
    assert config_id(compose("seed=1")) == config_id(
        compose("seed=2", "tracking.experiment=other", "checkpoint.every=5")
    )
    assert config_id(compose("seed=1")) != config_id(compose("seed=1", "algorithm/objective=clip_higher"))
    assert config_id(compose("algorithm=ppo")) != config_id(compose("algorithm=ppo_kl"))


def test_config_id_differs_between_options_with_the_same_values():
    """Two options may have no values at all; the hash must still depend on the choice."""
    one = compose("algorithm/aggregate=tokens", "tuned=none")
    other = compose("algorithm/aggregate=sequences", "tuned=none")
    assert config_id(one) != config_id(other)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["batch.group_size=1"], "batch.group_size is 1, but algorithm/baseline compares"),
        (
            ["algorithm=ppo", "algorithm/critic=none", "tuned=none"],
            "algorithm/critic is none, but the advantage is GAE",
        ),
        (["algorithm/critic=shared"], "algorithm/critic is shared, but nothing uses its values"),
        (
            ["algorithm.optimizer.minibatches=65"],
            "algorithm.optimizer.minibatches is 65, but a rollout has only 64 groups",
        ),
        (["algorithm.optimizer.epochs=0"], "algorithm.optimizer.epochs is 0; it must be at least 1"),
        (
            ["algorithm=trpo", "algorithm.optimizer.minibatches=2"],
            "algorithm.optimizer has 1 epochs of 2 minibatches, but a trust",
        ),
        (["algorithm=trpo", "algorithm/critic=shared", "tuned=none"], "algorithm/critic is shared, but a trust-region"),
        (
            ["algorithm=reinforce", "algorithm.optimizer.epochs=2"],
            "algorithm.optimizer takes 2 steps per rollout, but algorithm/obj",
        ),
        (
            ["algorithm=grpo", "algorithm/ratio=sequence", "algorithm/kl_to_behaviour=penalty"],
            "algorithm/kl_to_behaviour is penalty, which bounds the ratio of each token, but algorithm/ratio is seq",
        ),
        (
            ["algorithm=grpo_process", "reward=verifier"],
            "algorithm/baseline is group_step_mean, which needs the scores",
        ),
        (
            ["task=largest", "reward=process", "model.characters=abc"],
            "reward.process names `verifier`, but the task largest",
        ),
        (["algorithm=rloo", "batch.group_size=1"], "batch.group_size is 1, but algorithm/baseline compares"),
        (["algorithm=dapo", "algorithm.group_filter.rounds=0"], "algorithm.group_filter.rounds is 0"),
        (
            ["algorithm=ppo", "algorithm.critic.optimizer.minibatches=65"],
            "algorithm.critic.optimizer.minibatches is 65, but",
        ),
        (
            ["algorithm=ppo", "algorithm/kl_to_reference=in_loss_iterative", "algorithm/critic=adapter", "tuned=none"],
            "algorithm/critic is adapter, whose frozen base is the reference",
        ),
        (["model.lora.rank=-1"], "model.lora.rank is -1"),
        (["preferences.replay=1"], "preferences.replay is 1.0"),
        (["+reward.functions={no.such: 1}"], "reward.functions names 'no.such'"),
        (["sampling.temperature=0"], "sampling.temperature is 0"),
        (["sampling.top_p=1.5"], "sampling.top_p is 1.5"),
        (
            ["algorithm=gmpo", "algorithm/advantage=reward_to_go"],
            "algorithm/objective is geometric_mean, which needs one advantage per completion, but algorithm/adv",
        ),
        (
            ["algorithm=clip_cov", "algorithm/ratio=sequence"],
            "algorithm/objective is clip_cov, which treats some tokens",
        ),
        (["algorithm=maxrl", "batch.group_size=1"], "batch.group_size is 1, but algorithm/baseline compares"),
        (
            ["algorithm=reinforce_pp", "algorithm/scale=gpg", "batch.group_size=1"],
            "batch.group_size is 1, but algorithm/scale compares",
        ),
        (["algorithm=rloo", "algorithm/kl_to_reference=distillation"], "algorithm.kl_to_reference.name is empty"),
        (
            ["algorithm=dapo", *TEACHER],
            "algorithm/group_filter is dynamic, which reads the scores of completions, but algo",
        ),
        (["algorithm=remax", *TEACHER], "algorithm/baseline is greedy, which reads the scores of completions, but"),
        (
            ["algorithm=ppo", "algorithm/critic=adapter", "tuned=none", *TEACHER],
            "algorithm/critic is adapter, whose frozen base is the reference, but algorithm/kl_to_reference is distill",
        ),
        (["budget.limit=0"], "budget.limit is 0"),
        (["task.digits=14"], "task.digits is 14"),
        (["task.heldout=0"], "task.heldout is 0"),
        (["device=cuda:9"], "device is 'cuda:9'"),
        (["model.name=''"], "model.name is empty"),
        (["model.characters=''"], "model.name is 'scratch', which needs"),
        (["task=jsonl", "task.path=/no/such/file"], "task.path is '/no/such/file', which cannot be read"),
        (["task=jsonl"], "task.path"),
        (["algorithm.optimizer.lr=-1"], "algorithm.optimizer.lr is -1.0; it must be above 0."),
        (["algorithm.optimizer.lr=nan"], "algorithm.optimizer.lr is nan; it must be a finite number, above 0."),
        (["++reward.functions.verifier=inf"], "reward.functions.verifier is inf; it must be a finite number, at least"),
        (["study.tuning_seeds=[1,-1]"], "study.tuning_seeds.1 is -1; it must be at least 0"),
        (
            ["seed=9223372036854775808"],
            "seed is 9223372036854775808; it must be at least 0 and at most 922337203685477",
        ),
        (["algorithm.step=text"], "unknown key algorithm.step; valid keys are group_filter, "),
        (["+foo=1"], "unknown key foo; valid keys are "),
        (["algorithm/aggregate=1"], "algorithm/aggregate=1: a group takes the name of a choice"),
        (["algorithm=null"], "algorithm=null: a group takes the name of a choice"),
        (["algorithm.optimizer=3"], "algorithm.optimizer is a group, not a value"),
        (["algorithm.objective=${seed}"], "algorithm.objective is a group, not a value"),
        (["algorithm.objective=${algorithm.optimizer}"], "algorithm.objective is a group, not a value"),
        (["algorithm.optimizer.lr=null"], "algorithm.optimizer.lr is null; it must have a value."),
        (["~budget"], "budget is not set"),
        (["model.architecture=text"], "model.architecture: Cannot assign str to Dict"),
        (["model.architecture.hidden_size=66"], "(66) is not a multiple of the number of attention heads (4)."),
        (["model.architecture.num_key_value_heads=3"], "which cannot be built: The size of tensor a (4) must match"),
        (["+model.architecture.heads=4"], "which cannot be built: a llama has no heads."),
        (["+model.architecture.vocab_size=5"], "vocab_size is 5, but the tokenizer has 19 tokens."),
        (["model.attention=flex_attention", "device=cpu"], "exists on GPUs alone, but the device is cpu"),
        (["model.attention=flex_attention", "mode=predict"], "a prediction cannot count; predict with sdpa"),
        (["model.characters=aa"], "model.characters is 'aa'; no character may be there twice."),
    ],
)
def test_impossible_configurations_are_refused_in_one_sentence(overrides, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)) as caught:
        compose(*overrides)
    assert "\n" not in str(caught.value)


def test_a_file_of_pairs_cannot_be_renewed(tmp_path):
    (path := tmp_path / "pairs.jsonl").write_text('{"prompt": "1=", "chosen": "1", "rejected": "2"}')
    iterative = ["algorithm=grpo", "algorithm/kl_to_reference=in_loss_iterative"]
    with pytest.raises(UserError, match="but algorithm/kl_to_reference=in_loss_iterative renews the reward model"):
        compose("reward=learned", f"preferences.path={path}", *iterative)


def test_types_are_checked():
    with pytest.raises((OmegaConfBaseException, Exception), match="digits"):
        compose("task.digits=ten")


def test_conf_travels_with_the_package():
    assert (Path(CONF) / "config.yaml").is_file()
