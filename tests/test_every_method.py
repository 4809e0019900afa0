"""Every accepted combination of method, critic and task takes two updates of the real loop; all others are refused."""

import math
from copy import deepcopy
from pathlib import Path

import pytest
import yaml

from bakeoff.algorithm import AXES
from bakeoff.config import Config
from bakeoff.errors import UserError
from bakeoff.learner.holdings import weight_bytes
from bakeoff.loop import update_once
from bakeoff.metrics import DEFINITIONS, update_metrics
from bakeoff.paths import CONF
from bakeoff.validation import validate
from tests.conftest import compose, known, loop_of, update_of

METHODS = sorted(path.stem for path in (CONF / "algorithm").glob("*.yaml"))
SIZES = [
    *("batch.prompts=4", "batch.group_size=2", "sft.steps=0", "task.heldout=4", "measure.kl_sequences=4"),
    "++model.architecture.num_hidden_layers=1",
]
SMALL = ["tuned=none", *SIZES]
TASKS = ["sort", "jsonl"]


def options_of(method: str) -> set[tuple[str, str]]:
    """The options that the method's file names; to compose every method takes a quarter of a minute."""
    lines = yaml.safe_load((CONF / "algorithm" / f"{method}.yaml").read_text())["defaults"]
    return {(axis, name) for line in lines for axis, name in line.items()}


def few_with_every_option() -> list[str]:
    """Methods that together have every option that any method has: for tests of what meets options, not methods."""
    kept = list(METHODS)
    for method in METHODS:
        others = set().union(*(options_of(other) for other in kept if other != method))
        if options_of(method) <= others:
            kept.remove(method)
    return kept


WITH_CRITIC = {name for name in METHODS if AXES["critic"][dict(options_of(name))["critic"]].exists}
FEW_WITH_EVERY_OPTION = few_with_every_option()


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("\n".join(f'{{"prompt": "{i}+{i}=", "answer": "{i + i}"}}' for i in range(50)))
    return path


def configuration(method: str, critic: str, task: str, pairs: Path) -> Config:
    """A combination that may be unsound: the method's configuration with another critic and another task."""
    of_task = [f"task.path={pairs}", "task.max_new_tokens=4"] if task == "jsonl" else []
    config = compose(f"algorithm={method}", *SMALL)
    config.algorithm.critic = deepcopy(AXES["critic"][critic])
    config.task = compose(f"task={task}", *of_task, "algorithm=grpo", *SMALL).task
    return config


def refusal(method: str, critic: str, task: str) -> str:
    """Part of the message that refuses this combination; empty if it is accepted."""
    if method in WITH_CRITIC and critic == "none":
        return "algorithm/critic is none"
    if method not in WITH_CRITIC and critic != "none":
        return "nothing uses its values"
    if method == "trpo" and critic == "shared":
        return "not a value head on its trunk"
    if method == "grpo_process" and task == "jsonl":
        return "does not score steps"
    return ""


# the other task meets a method in its scores alone, of which each baseline makes something else
WITH_OTHER_TASK = {dict(options_of(method))["baseline"]: method for method in METHODS}.values()
CASES = [(m, c, t) for m in METHODS for c in AXES["critic"] for t in TASKS if t == "sort" or m in WITH_OTHER_TASK]


@pytest.mark.parametrize(("method", "critic", "task"), [c for c in CASES if not refusal(*c)])
def test_every_accepted_combination_takes_two_updates(method, critic, task, pairs):
    config = configuration(method, critic, task, pairs)
    validate(config)
    if method == "trpo":
        config.algorithm.optimizer.cg_iterations, config.algorithm.optimizer.backtracks = 2, 2
    loop = loop_of(config)
    first = update_of(loop)
    metrics = update_of(loop, traced=True)
    for values in (first, metrics):
        assert all(math.isfinite(value) for value in values.values()), values
    assert loop.learner.counters.updates == 2
    assert metrics["progress/sequences"] >= 16
    unknown = [m for m in metrics if not any(known(m, pattern) for pattern in DEFINITIONS)]
    assert not unknown, "a metric that docs/metrics.md does not explain"
    assert metrics["reward/quantile_10"] <= metrics["reward/median"] <= metrics["reward/quantile_90"]
    assert ("critic/value_loss" in metrics) == (critic != "none")


@pytest.mark.parametrize("method", METHODS)
def test_every_other_combination_is_refused_in_one_sentence(method, pairs):
    refused = [(critic, task) for m, critic, task in CASES if m == method and refusal(m, critic, task)]
    for critic, task in refused:
        with pytest.raises(UserError, match=refusal(method, critic, task)) as caught:
            validate(configuration(method, critic, task, pairs))
        assert "\n" not in str(caught.value)
    assert refused


@pytest.mark.parametrize("lora", [0, 2])
@pytest.mark.parametrize("method", ["ppo", "ppo_kl", "grpo", "grpo_iterative"])
def test_a_learned_reward_adds_a_reward_model_and_hides_the_true_reward(method, lora):
    """Scores are those of the reward model; the true reward is measured and not used."""
    choices = ["reward=learned", "sft.steps=2", f"model.lora.rank={lora}"]
    few = ["preferences.pairs=16", "preferences.heldout=8", "preferences.steps=3", "preferences.batch=8"]
    renewal = ["preferences.renewal_steps=2", "preferences.renewal_pairs=8"]
    config = compose(f"algorithm={method}", *SMALL, "sft.steps=2", *choices, *few, *renewal)
    if method == "grpo_iterative":
        config.algorithm.kl_to_reference.iteration_updates = 1
    loop = loop_of(config)
    with loop.traced():
        update = update_once(loop)
    metrics, scores = update_metrics(update, loop.learner.counters), update.collected.scores
    assert scores.outcome.tolist() == pytest.approx(scores.terms["learned"].tolist())
    assert 0 <= metrics["reward/true"] <= 1
    sizes = {role: size / 1e6 for role, size in weight_bytes(loop.learner).items()}
    assert sizes["actor"] > 0.2
    assert sizes["reward_model"] == pytest.approx(sizes["actor"], rel=0.2)
    assert (sizes["critic"] > 0) == (method in WITH_CRITIC)
    assert (sizes["reference"] == 0) == (lora > 0), "with an adapter the reference is the actor without it"
    if method == "grpo_iterative":
        assert 0 <= metrics["reward_model/new_pair_accuracy"] <= 1
