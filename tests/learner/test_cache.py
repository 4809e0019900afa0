"""The cache of starts: content is the key, not a path, and what was changed since is made again."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from bakeoff.config import config_id
from bakeoff.errors import UserError
from bakeoff.learner.sft import made_once, start_identity
from bakeoff.model.weights import save, weights_hash
from bakeoff.start import prepare, start
from tests.conftest import compose

FEW = ("model=tiny", "sft.steps=2", "sft.batch=8", "task.heldout=4", "task.max_new_tokens=4", "algorithm=grpo")


def pairs(folder, answer: str) -> str:
    folder.mkdir(exist_ok=True)
    rows = [{"prompt": f"{number}=", "answer": answer.format(number)} for number in range(20)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder / "pairs.jsonl")


def on(path: str):
    return compose("task=jsonl", f"task.path={path}", *FEW)


def test_a_data_file_counts_by_its_content_in_the_arm_and_in_the_key_of_the_start(tmp_path):
    first, other = pairs(tmp_path / "a", "{}"), pairs(tmp_path / "b", "9{}")
    moved = shutil.copytree(tmp_path / "a", tmp_path / "c") / "pairs.jsonl"
    for key in (config_id, start_identity):
        assert key(on(first)) == key(on(str(moved)))
        assert key(on(first)) != key(on(other))


def test_a_preference_file_and_a_model_folder_count_by_their_content(tmp_path, tiny):
    rows = [{"prompt": f"{number}=", "chosen": "1", "rejected": "2"} for number in range(9)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    save(tiny, folder := tmp_path / "model")
    for changed, overrides in (
        (path, ["reward=learned", f"preferences.path={path}", "preferences.heldout=4"]),
        (folder / "model.safetensors", ["model=hf", f"model.name={folder}"]),
        (folder / "tokenizer.json", ["model=hf", f"model.name={folder}"]),
    ):
        before = config_id(compose(*overrides))
        content = changed.read_bytes()
        changed.write_bytes(content.replace(b"2", b"3", 1))
        assert config_id(compose(*overrides)) != before, changed.name
        changed.write_bytes(content)
        assert config_id(compose(*overrides)) == before, changed.name


@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "add"])
def test_a_changed_start_is_kept_aside_and_made_again(tmp_path, monkeypatch, damage):
    monkeypatch.setenv("BAKEOFF_CACHE", str(tmp_path / "cache"))
    config, messages = on(pairs(tmp_path / "a", "{}")), []
    first = weights_hash(start(config, prepare(config)).learner.actor.network)
    (weights,) = (tmp_path / "cache").rglob("model.safetensors")
    content = weights.read_bytes()
    match damage:
        case "flip":
            weights.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        case "cut":
            weights.write_bytes(content[: len(content) // 2])
        case "delete":
            weights.unlink()
        case "add":
            (weights.parent / "adapter_config.json").write_text("{}")
    again = start(config, prepare(config), messages.append)
    assert weights_hash(again.learner.actor.network) == first
    assert any("was changed after it was made" in message for message in messages)


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "cache", "/proc/nope"):
        monkeypatch.setenv("BAKEOFF_CACHE", str(folder))
        with pytest.raises(UserError, match=r"the cache .* cannot be written .*; set BAKEOFF_CACHE"):
            made_once(Path(folder) / "starts" / "key", lambda path: None, print)


def test_a_start_is_the_same_on_a_second_reading(tmp_path):
    config = on(pairs(tmp_path / "a", "{}"))
    one, two = (start(config, prepare(config)).learner.actor.network.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_users_reward_counts_by_the_content_of_its_file(tmp_path, monkeypatch):
    source = tmp_path / "scores_of_a_user.py"
    source.write_text("def length(completions, **columns):\n    return [float(len(c)) for c in completions]\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = compose("reward=function", "+reward.functions={scores_of_a_user.length: 1.0}")
    before = config_id(config)
    source.write_text(source.read_text().replace("len(c)", "len(c) + 1"))
    assert config_id(config) != before
