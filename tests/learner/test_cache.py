"""The cache of starts: content is the key, not a path, and what was changed since is made again."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bakeoff.errors import UserError
from bakeoff.files import content_hash
from bakeoff.identity import config_id
from bakeoff.learner.sft import made_once, start_identity
from bakeoff.model.weights import save, weights_hash
from bakeoff.start import prepare, start
from bakeoff.task.dataset import Dataset
from bakeoff.task.table import Format, read_table, rows_hash
from bakeoff.user_code import code_hash
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


def test_the_modules_that_a_users_file_imports_count_too(tmp_path):
    """Neighbours at any remove, a package, in a circle; a module beside them that none imports does not count."""
    texts = {
        "mine.py": "import lengths, re\nfrom shares import tenth\n",
        "lengths.py": "from shares import tenth\n",
        "shares/__init__.py": "from shares.parts import tenth\n",
        "shares/parts.py": "import lengths\ntenth = 0.1\n",
        "other.py": "tenth = 0.1\n",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for name in texts:
        before = code_hash(tmp_path / "mine.py")
        with (tmp_path / name).open("a") as file:
            file.write("# changed\n")
        assert (code_hash(tmp_path / "mine.py") != before) == (name != "other.py"), name
    assert code_hash(tmp_path / "other.py") == content_hash(tmp_path / "other.py")
    copied = shutil.copytree(tmp_path, tmp_path.with_name(f"{tmp_path.name}_copy"))
    assert code_hash(copied / "mine.py") == code_hash(tmp_path / "mine.py"), "where it stands does not count"


def test_a_neighbour_of_a_users_reward_counts_in_the_identity_of_a_configuration(tmp_path):
    (tmp_path / "shares.py").write_text("tenth = 0.1\n")
    source = tmp_path / "mine.py"
    source.write_text(
        "from shares import tenth\n\ndef f(completions, **columns):\n    return [tenth] * len(completions)\n"
    )
    config = compose(f"reward.functions={{{source}:f: 1.0}}")
    before = config_id(config)
    (tmp_path / "shares.py").write_text("tenth = 0.2\n")
    assert config_id(config) != before


class OfTheHub(Dataset):
    """Data of the Hub as a test without a network can have it: read from a file that is gone since."""

    def files(self):
        return {key: path for key, path in super().files().items() if Path(path).exists()}


def test_data_of_the_hub_counts_by_what_was_read(tmp_path):
    def identity(answer):
        path = Path(pairs(tmp_path / "of the hub", answer))
        task = OfTheHub(path=str(path), heldout=4)
        task.fingerprints["path"] = rows_hash(read_table("task.path", str(path), Format.auto, "", "", ""))
        path.unlink()
        return config_id(replace(compose(), task=task))

    assert identity("{}") == identity("{}") != identity("9{}")
