"""Checkpoints are complete and atomic, only the last few are kept, and a damaged one is never loaded."""

import json
import os
import random
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from bakeoff.learner.checkpoint import checkpoints, load_checkpoint, newest_whole, read_run, save_checkpoint
from bakeoff.learner.learner import make_learner
from bakeoff.loop import update_once
from bakeoff.model.build import build
from bakeoff.model.weights import weights_hash
from tests.conftest import compose, loop_of, update_of
from tests.damage import DAMAGE


def learner_of(*overrides, seed=0):
    config = compose(*overrides)
    return make_learner(config, build(config.model, seed))


def one_step(learner, draw):
    for optimizer in filter(None, (learner.actor_optimizer, learner.critic_optimizer)):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.randn(parameter.shape, generator=draw)
        optimizer.step()


@pytest.mark.parametrize(
    "overrides",
    [
        ["algorithm=ppo"],
        ["algorithm=ppo", "algorithm/critic=shared", "tuned=none"],
        ["algorithm=ppo", "algorithm/critic=adapter", "model.lora.rank=2", "tuned=none"],
        ["algorithm=ppo", "algorithm/critic=adapter", "tuned=none"],
        ["algorithm=trpo", "tuned=none"],
        [],
    ],
)
def test_a_restored_learner_takes_the_same_next_step(overrides, tmp_path):
    draw = torch.Generator().manual_seed(0)
    learner = learner_of(*overrides)
    one_step(learner, draw)
    learner.counters.updates, learner.counters.seconds = 7, 1 / 3
    learner.betas.behaviour, learner.betas.entropy = 0.1, 0.015
    save_checkpoint(tmp_path, learner, {"seed": 0}, keep=2)
    other = learner_of(*overrides)  # the same start, then another step
    one_step(other, torch.Generator().manual_seed(5))
    other = load_checkpoint(checkpoints(tmp_path)[-1], other)
    for each in (learner, other):
        one_step(each, torch.Generator().manual_seed(1))
    assert weights_hash(other.actor.network) == weights_hash(learner.actor.network)
    assert (other.counters, other.betas) == (learner.counters, learner.betas)
    if learner.critic is not None:
        assert weights_hash(other.critic.trunk.backbone) == weights_hash(learner.critic.trunk.backbone)
        assert weights_hash(other.critic.head) == weights_hash(learner.critic.head)
    if learner.head is not None:
        assert weights_hash(other.head) == weights_hash(learner.head)


@pytest.mark.parametrize("method", ["clip_cov", "entropy_adaptive"])
def test_a_resumed_run_draws_the_same_tokens_and_has_the_same_coefficient(method, tmp_path):
    small = ["tuned=none", "sft.steps=0", "task.heldout=4", "batch.prompts=4", "algorithm.optimizer.lr=1e-2"]
    wide = ["algorithm.objective.share=0.2", "algorithm.objective.least=0"] if method == "clip_cov" else []
    quick = ["algorithm.entropy.target_nats_per_token=9"] if method == "entropy_adaptive" else []
    loop, other = (loop_of(compose(f"algorithm={method}", *small, *wide, *quick)) for _ in range(2))
    for _ in range(2):
        update_once(loop)
    save_checkpoint(tmp_path, loop.learner, {"seed": 0}, keep=1)
    other = replace(other, learner=load_checkpoint(checkpoints(tmp_path)[-1], other.learner))
    found = [update_of(each) for each in (loop, other)]
    first, second = ({k: v for k, v in each.items() if k.startswith(("policy/", "kl/"))} for each in found)
    assert first == second
    assert first["policy/entropy_coefficient"] == (0.01 if method == "entropy_adaptive" else 0)
    assert first["policy/first_clip_fraction"] > 0 or method != "clip_cov"


def test_only_the_last_few_checkpoints_are_kept_and_partial_ones_are_ignored(tmp_path):
    learner = learner_of()
    (tmp_path / ".update_000020.partial").mkdir()
    for updates in (5, 10, 15):
        learner.counters.updates = updates
        save_checkpoint(tmp_path, learner, {"seed": updates}, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["update_000010", "update_000015"]
    assert read_run(checkpoints(tmp_path)[-1]) == {"seed": 15}


def test_checkpoints_are_ordered_by_number(tmp_path):
    for updates in (1_000_000, 999_999, 7, 10_000_000):
        (tmp_path / f"update_{updates:06d}").mkdir()
    assert [int(path.name[7:]) for path in checkpoints(tmp_path)] == [7, 999_999, 1_000_000, 10_000_000]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Two checkpoints of a learner with a critic, of updates 3 and 6."""
    folder, learner, draw = tmp_path_factory.mktemp("whole"), learner_of("algorithm=ppo"), torch.Generator()
    for updates in (3, 6):
        one_step(learner, draw)
        learner.counters.updates = updates
        save_checkpoint(folder, learner, {"seed": 1}, keep=2)
    return folder


FILES = ["state.json", *(f"{name}.safetensors" for name in ("actor", "critic", "actor_optimizer", "critic_optimizer"))]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_kept_aside_and_the_one_before_is_used(name, damage, whole, tmp_path):
    assert {path.name for path in (whole / "update_000006").iterdir()} == set(FILES)
    for seed in range(5):
        folder = shutil.copytree(whole, tmp_path / str(seed))
        DAMAGE[damage](folder / "update_000006" / name, random.Random(f"{name} {damage} {seed}"))
        said = []
        assert newest_whole(folder, said.append).name == "update_000003"
        assert len(said) == 1
        assert "update_000006 is damaged" in said[0]
        assert {path.name for path in folder.iterdir()} == {"damaged_update_000006", "update_000003"}
        assert newest_whole(folder, said.append).name == "update_000003"
        assert len(said) == 1, "it is said once"


def test_every_changed_value_of_the_state_is_damage(whole, tmp_path):
    """Not only a broken file: each number, text and key of `state.json`, changed to another that is valid JSON."""

    def places(node, at=()):
        for key in node if isinstance(node, dict) else range(len(node)):
            yield (*at, key)
            if isinstance(node[key], dict | list):
                yield from places(node[key], (*at, key))

    text = (whole / "update_000006" / "state.json").read_text()
    changes = [*places(json.loads(text))]
    folder = shutil.copytree(whole, tmp_path / "copy")
    for at in changes:
        state = json.loads(text)
        node = state
        for key in at[:-1]:
            node = node[key]
        node[at[-1]] = 8 if node[at[-1]] != 8 else 9
        path = folder / "update_000006"
        (path / "state.json").write_text(json.dumps(state, indent=1))
        assert newest_whole(folder, str).name == "update_000003", at
        (folder / "damaged_update_000006").rename(path)


@pytest.mark.parametrize("how", ["another name", "a file", "an empty folder"])
def test_what_has_only_a_checkpoints_name_is_none(how, whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "copy")
    newest = folder / "update_000009"
    if how == "another name":
        (folder / "update_000006").rename(newest)
    elif how == "a file":
        newest.write_text("")
    else:
        newest.mkdir()
    said = []
    assert newest_whole(folder, said.append).name == ("update_000003" if how == "another name" else "update_000006")
    assert len(said) == 1
    assert (folder / "damaged_update_000009").exists()


def test_a_file_that_does_not_belong_to_a_checkpoint_does_no_harm(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "copy")
    (folder / "update_000006" / "notes.txt").write_text("mine")
    assert newest_whole(folder, str).name == "update_000006"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_that_may_not_be_read_is_kept_aside(name, whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "copy")
    (folder / "update_000006" / name).chmod(0)
    assert newest_whole(folder, str).name == "update_000003"


def test_two_damaged_checkpoints_of_one_update_are_both_kept(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "copy")
    for _ in range(2):
        shutil.copytree(whole / "update_000006", folder / "update_000006", dirs_exist_ok=True)
        (folder / "update_000006" / "state.json").write_text("{}")
        newest_whole(folder, str)
    assert {path.name for path in folder.glob("damaged_*")} == {"damaged_update_000006", "damaged_update_000006_2"}
    (folder / "update_000003" / "state.json").unlink()
    assert newest_whole(folder, str) is None


def test_a_tied_weight_is_saved_once(tmp_path):
    learner = learner_of("algorithm=ppo")
    network = learner.actor.network
    assert network.get_input_embeddings().weight is network.get_output_embeddings().weight
    names = load_file(save_checkpoint(tmp_path, learner, {}, keep=1) / "actor.safetensors").keys()
    assert len(names) == len(list(network.parameters()))
    assert [name for name in names if "lm_head" in name] == []
