"""A run's folder: it is read as data, belongs to one process and one run, and stays as it was where that is refused."""

import itertools
import json
import multiprocessing
import random
import shlex
import sys

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from bakeoff import validation
from bakeoff.__main__ import main
from bakeoff.algorithm import AXES
from bakeoff.errors import MISTAKES, UserError
from bakeoff.evaluate import of_run
from bakeoff.folder import (
    CONFIG,
    RECORD,
    Record,
    content,
    held,
    read_config,
    read_record,
    resume_command,
    write_record,
)
from bakeoff.identity import config_id, plain, training_id
from bakeoff.resume import refuse_code, restored, resume
from bakeoff.tracking import start_run
from bakeoff.validation import to_config
from tests.commands import store_of
from tests.conftest import compose
from tests.stored import tracking
from tests.test_studies import METHODS

NAMES = [
    "out",
    "lr=0.1,seed=1",
    "my run (1)",
    "a[0]{b}",
    "it's",
    'a "quoted" one',
    "münchen ✓",
    "${seed}",
    "~+x",
    "a b",
]


def run_in(folder, *overrides, **changes):
    """The configuration of a run that has not started; the folder is the run's."""
    folder.mkdir(exist_ok=True)
    config = compose(*overrides)
    config.tracking.uri = f"sqlite:///{folder.parent / 'mlflow.db'}"
    values = {"config_id": config_id(config), "seed": config.seed, "mlflow_run": "0" * 32, "uri": config.tracking.uri}
    write_record(folder, Record(**(values | {"choices": {"algorithm": "grpo"}, "settings": []} | changes)), config)
    return config


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize("method", METHODS)
def test_every_configuration_is_read_as_it_was_written(method, tmp_path):
    config = run_in(tmp_path / "out", f"algorithm={method}", "seed=3")
    assert to_config(restored(read_config(tmp_path / "out"))) == config


@pytest.mark.parametrize(("axis", "option"), [(axis, option) for axis in AXES for option in AXES[axis]])
def test_every_option_is_read_as_it_was_written(axis, option, tmp_path):
    config = compose()
    setattr(config.algorithm, axis, AXES[axis][option])
    assert OmegaConf.to_object(restored(plain(config))) == config


@pytest.mark.parametrize(
    "text", ["${oc.env:HOME}", r"\${seed}", r"a\\${seed}b", "${", "???x", "", "#", "1e5", "null", "ö\n\t'"]
)
def test_a_text_is_never_an_interpolation(text, tmp_path):
    config = compose()
    config.model.system = text
    config.model.architecture["note"] = [text, {"deep": text}]
    write_record(tmp_path, Record("", 0, "", "", {}, []), config)
    again = OmegaConf.to_object(restored(read_config(tmp_path)))
    assert (again.model.system, again.model.architecture["note"]) == (text, [text, {"deep": text}])


LAUGHS = "a: &a [x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in itertools.pairwise("abcdefghi")
)
HOSTILE = {
    "an object": "!!python/object/apply:os.system ['touch hacked']",
    "an object within": "task: !!python/object/new:os.system ['touch hacked']",
    "laughs": LAUGHS,
    "depth": "[" * 10_000,
    "deep mappings": "{a: " * 5_000,
    "size": "a: " + "x" * 2_000_000,
    "a list": "[1, 2]",
    "nothing": "",
    "no YAML": "task: [",
    "keys that are no texts": "{1: 2, [3]: 4}",
    "a date as a key": "2020-01-01: 1",
    "not UTF-8": b"\xff\xfe\x00",
    "a null byte": b"a: \x00",
    "another version": "{task: {_option_: Chess}}",
    "text for an option": "{task: sort, algorithm: grpo}",
    "a target": "{task: {_option_: Sort, _target_: os.system}}",
    "another class": "{task: {_option_: Config}}",
    "an unknown key": "{hydra: {callbacks: {x: {_target_: os.system}}}}",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_strangers_configuration_ends_in_one_sentence_and_runs_nothing(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_in(tmp_path / "out")
    hostile = HOSTILE[kind]
    (tmp_path / "out" / CONFIG).write_bytes(hostile if isinstance(hostile, bytes) else hostile.encode())
    before = contents(tmp_path)
    with pytest.raises(MISTAKES):
        resume(tmp_path / "out", [])
    assert contents(tmp_path) == before


def test_a_flipped_byte_of_a_folders_files_never_ends_in_a_traceback(tmp_path):
    """It may be refused, or read as what was written; it is never another configuration."""
    config, draw = run_in(tmp_path / "out"), random.Random(0)
    for name in (CONFIG, RECORD) * 20:
        path = tmp_path / "out" / name
        good = path.read_bytes()
        data = bytearray(good)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        try:
            record = read_record(tmp_path / "out")
            read = OmegaConf.to_object(restored(read_config(tmp_path / "out")))
            assert (config_id(read), read.seed) != (record.config_id, record.seed) or training_id(read) == training_id(
                config
            )
        except MISTAKES:
            pass
        path.write_bytes(good)


@pytest.mark.parametrize("key", ["functions", "process"])
def test_a_folder_imports_no_code_that_the_command_line_does_not_name(key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs.py").write_text(
        "open('hacked', 'w')\ndef f(completions, **_):\n    return [0.0] * len(completions)\n"
    )
    config = run_in(tmp_path / "out")
    values = plain(config)
    values["reward"][key]["theirs.f"] = 1.0
    (tmp_path / "out" / CONFIG).write_text(yaml.safe_dump(values))
    for others in ([], ["reward.functions={verifier: 1}"], ["reward.functions={theirs.g: 1}"]):
        with pytest.raises(UserError, match=r"imports 'theirs.f' \(reward"):
            resume(tmp_path / "out", others)
    assert "theirs" not in sys.modules
    assert not (tmp_path / "hacked").exists()


THEIRS = "open('hacked', 'w')\ndef f(*texts, **_):\n    return 1\n"


@pytest.mark.parametrize("name", ["theirs.f", "./theirs.py:f"])
@pytest.mark.parametrize("key", ["task.function", "measure.functions", "reward.functions"])
def test_a_folder_that_is_scored_imports_no_code_of_its_own(key, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs.py").write_text(THEIRS)
    (tmp_path / "d.jsonl").write_text("".join(f'{{"prompt": "{n}=", "answer": "{n}"}}\n' for n in range(9)))
    run_in(tmp_path / "out", "task=dataset", "task.path=d.jsonl", "task.heldout=2", "sft.steps=0")
    values = read_config(tmp_path / "out")
    group, leaf = key.split(".")
    values[group] |= {leaf: {"task": name, "measure": [name], "reward": {name: 1.0}}[group]}
    values["task"] |= {"verify": "function"} if group == "task" else {}
    (tmp_path / "out" / CONFIG).write_text(yaml.safe_dump(values))
    if group == "task":
        with pytest.raises(UserError, match=r"imports '.*' \(task.function\); to allow that, add 'task.function="):
            of_run(tmp_path / "out", [])
        assert of_run(tmp_path / "out", ["task=sort"]).task.digits
    else:
        assert of_run(tmp_path / "out", ["task.heldout=3"]).task.heldout == 3
    assert not (tmp_path / "hacked").exists()
    if group == "task":
        assert of_run(tmp_path / "out", [f"task.function={name}"]).task.function == name


def test_the_command_that_resumes_names_every_function_of_theirs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "theirs.py").write_text(THEIRS)
    (tmp_path / "d.jsonl").write_text("".join(f'{{"prompt": "{n}=", "answer": "{n}"}}\n' for n in range(9)))
    data = ["task=dataset", "task.path=d.jsonl", "task.heldout=2", "task.verify=function", "sft.steps=0"]
    named = ["task.function=./theirs.py:f", "measure.functions=[./theirs.py:f]", "reward.functions={./theirs.py:f: 1}"]
    GlobalHydra.instance().clear()
    config = validation.compose([*data, *named])
    _, _, *asked = shlex.split(resume_command(tmp_path, config))
    assert {each.split("=")[0] for each in asked} == {each.split("=")[0] for each in named}
    refuse_code(plain(config), OverridesParser.create().parse_overrides(asked), tmp_path)
    for left_out in range(3):
        others = OverridesParser.create().parse_overrides([each for n, each in enumerate(asked) if n != left_out])
        with pytest.raises(UserError, match=r"imports './theirs.py:f'"):
            refuse_code(plain(config), others, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["algorithm.optimizer.lr=1", "seed=5"], ["algorithm.optimizer.lr is", "not 1.0", "seed is 0, not 5"]),
        (["algorithm=ppo"], ["algorithm=ppo chooses an option"]),
        (["task=largest"], ["task=largest chooses an option"]),
        (["+new.key=1"], ["unknown key new"]),
        (["+task.new=1"], ["unknown key task.new"]),
        (["budget.limt=9"], ["unknown key budget.limt", "limit"]),
        (["budget.limit=many"], ["budget.limit"]),
        (["budget.limit=1,2"], ["budget.limit=1,2 does not set one value"]),
        (["~budget"], ["~budget does not set one value"]),
        (["hydra.run.dir=x"], ["unknown key hydra"]),
        (["evaluation.every=0"], ["evaluation.every is 0"]),
        (["-m"], ["-m cannot be combined with resume=out"]),
        (["--config-dir=x"], ["--config-dir=x cannot be combined with"]),
        (["resume=other"], ["resume is 'out and other'"]),
        (["budget"], ["budget"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_what_resume_refuses_leaves_the_folder_as_it_was(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_in(tmp_path / "out")
    before = contents(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bakeoff", "resume=out", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert all(word in line for word in words), line
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_any_name_is_found_and_named_in_the_command(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = run_in(tmp_path / name)
    monkeypatch.setattr(sys, "argv", ["bakeoff", f"resume={name}", "seed=9"])
    with pytest.raises(SystemExit):
        main()
    assert f"the run in '{name}' cannot change what it trains: seed is 0, not 9" in capsys.readouterr().err
    assert shlex.split(resume_command(tmp_path / name, config)) == ["bakeoff", f"resume={tmp_path / name}"]


def test_the_command_that_resumes_a_run_asks_for_a_password_and_does_not_contain_it(tmp_path, monkeypatch):
    config = compose()
    config.tracking.uri = "http://me:secret@host:1"
    asking = f"MLFLOW_TRACKING_URI=ADDRESS bakeoff resume={tmp_path}"
    assert resume_command(tmp_path, config) == asking
    monkeypatch.setenv("MLFLOW_TRACKING_URI", config.tracking.uri)
    assert resume_command(tmp_path, config) == f"bakeoff resume={tmp_path}", "the shell holds the address"


def test_a_folder_without_a_run_is_refused(tmp_path, monkeypatch):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UserError, match="which holds no run"):
            resume(path, [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("overrides", [["seed=2"], ["algorithm=ppo"], ["budget.limit=7"], ["task.digits=3"]])
def test_a_folder_that_holds_another_run_is_refused_and_stays(overrides, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_in(tmp_path / "out")
    before = contents(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bakeoff", *overrides, "hydra.run.dir=out"])
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit):
        main()
    line = capsys.readouterr().err
    assert "holds another run" in line
    assert overrides[0].split("=")[0] in line
    assert contents(tmp_path) == before


def hold(folder, entered, leave):
    with held(folder, 1):
        entered.set()
        leave.wait(30)


def test_a_folder_is_one_processs_at_a_time_and_free_when_it_dies(tmp_path):
    context = multiprocessing.get_context("fork")
    entered, leave = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path, entered, leave))
    process.start()
    assert entered.wait(60)
    with pytest.raises(UserError, match="another process works in"), held(tmp_path, 0.1):
        pass
    process.kill()
    process.join()
    with held(tmp_path, 5):
        pass


def test_a_table_holds_each_update_once_after_a_resume(tmp_path):
    store_of(tmp_path)
    run = start_run(tracking(tmp_path), "run", {}, tmp_path)
    for update in (2, 4, 6, 4, 6, 8):  # killed after 6, resumed from 3
        run.table([{"update": update, "text": f"{row}"} for row in range(2)], "completions.json")
    assert [row[0] for row in json.loads((tmp_path / "completions.json").read_text())["data"]] == [
        2,
        2,
        4,
        4,
        6,
        6,
        8,
        8,
    ]
    assert start_run(tracking(tmp_path), "run", {}, tmp_path, run.run_id).new is False
    assert start_run(tracking(tmp_path), "run", {}, tmp_path, "0" * 32).new is True


def test_only_a_file_of_moderate_size_is_read(tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ValueError, match="not a file"):
            content(path)
    (tmp_path / "text").write_text(json.dumps([1]))
    assert content(tmp_path / "text") == "[1]"
