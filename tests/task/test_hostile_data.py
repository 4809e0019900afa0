"""Data of hostile shape: a sentence within seconds, or sound examples; nothing in it is executed."""

import json
import os
import random

import pyarrow
import pyarrow.parquet
import pytest

from bakeoff.errors import UserError, sentence
from bakeoff.task import dataset
from bakeoff.task.dataset import Dataset
from bakeoff.task.verify import Extract, Verify, choice_of
from tests.damage import DAMAGE

ROWS = [{"prompt": f"{n}+{n}=", "answer": f"{2 * n}"} for n in range(40)]
ODD = [None, True, [], {}, "", 0, 1e999, float("nan"), "\ud800", "\x00", ["a"], [{"role": "user"}], {"a": {"b": []}}]


def made(path, **keys):
    """The examples of a file, or the sentence that refuses it."""
    try:
        return Dataset(path=str(path), heldout=2, **keys).known_examples()
    except UserError as error:
        return sentence(error)


def write(path, rows):
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows) if path.suffix == ".json" else "\n".join(map(json.dumps, rows)))


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_a_file_with_any_bytes_changed_is_read_or_refused_in_a_sentence(tmp_path, ending):
    path, draw = tmp_path / f"data.{ending}", random.Random(ending)
    if ending == "csv":
        path.write_text("prompt,answer\n" + "".join(f"{row['prompt']},{row['answer']}\n" for row in ROWS))
    else:
        write(path, ROWS)
    whole = path.read_bytes()
    for number in range(40):
        path.write_bytes(whole)
        if number < len(DAMAGE):
            [*DAMAGE.values()][number](path, draw)
        else:
            at = draw.randrange(len(whole))
            path.write_bytes(whole[:at] + draw.randbytes(draw.randint(1, 9)) + whole[at + draw.randint(0, 9) :])
        found = made(path)
        assert found if isinstance(found, str) else all(type(example.prompt) is str for example in found)
        if path.is_dir():
            path.rmdir()


@pytest.mark.parametrize("column", ["prompt", "answer", "task"])
def test_a_value_of_any_kind_is_a_text_or_refused_by_its_line(tmp_path, column):
    for value in ODD:
        rows = [*ROWS, {**ROWS[0], column: value}]
        (path := tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
        found = made(path)
        if isinstance(found, str):
            assert "line 41" in found
        else:
            assert (
                column == "task"
                or value in (0, "\x00")
                or (column != "answer" and value == "")
                or isinstance(value, list | dict)
            )
            assert found[-1].answer not in ("nan", "inf", "NaN", "Infinity", "None")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("d.jsonl", '{"prompt": "a", "answer": "1", "answer": "2"}'),
        ("d.json", '[{"prompt": "a", "prompt": "b"}]'),
        ("d.csv", "prompt,answer,answer\na,1,2\n"),
    ],
)
def test_two_columns_of_one_name_are_refused(tmp_path, name, text):
    (path := tmp_path / name).write_text(text)
    assert "twice" in made(path)


def test_parquet_of_odd_types_and_of_vast_size_is_read_or_refused(tmp_path):
    path = tmp_path / "d.parquet"
    columns = {
        "time": pyarrow.array([2**62] * 4, pyarrow.timestamp("us")),
        "bytes": pyarrow.array([b"\xff"] * 4),
        "map": pyarrow.array([[("a", 1)]] * 4, pyarrow.map_(pyarrow.string(), pyarrow.int64())),
        "null": pyarrow.nulls(4),
        "days": pyarrow.array([2**30] * 4, pyarrow.date32()),
    }
    texts = pyarrow.array([f"{n}" for n in range(4)])
    for name, values in columns.items():
        for prompt in (texts, values):
            table = pyarrow.table({"prompt": prompt, "answer": texts, name: values})
            pyarrow.parquet.write_table(table, path)
            made(path)
    pyarrow.parquet.write_table(pyarrow.table([texts, texts, texts], ["prompt", "answer", "answer"]), path)
    assert "twice" in made(path)
    pyarrow.parquet.write_table(pyarrow.table({"prompt": pyarrow.nulls(2**24 + 1)}), path)
    assert "rows, which are more than" in made(path)


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet", "other"])
def test_a_file_without_end_is_refused_at_once(tmp_path, ending):
    path = tmp_path / f"d.{ending}"
    with path.open("wb") as file:
        file.truncate(2**40)  # which takes no space
    assert isinstance(made(path), str)
    path.unlink()
    os.mkfifo(path)
    assert "pipe" in made(path)


def test_a_folder_of_pipes_devices_and_code_is_refused_and_nothing_runs(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "data.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert isinstance(made(folder), str)
    os.mkfifo(folder / "train.jsonl")
    (folder / "test.jsonl").symlink_to("/dev/zero")
    assert isinstance(made(folder), str)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ prompt.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('touch RAN') }}",
        "{{ '{0.__class__}'.format(prompt) }}",
        "{% include '/etc/passwd' %}",
        "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
        "{{ 'x' * 10 ** 13 }}",
    ],
)
def test_a_template_that_loops_or_reaches_beyond_its_row_is_refused(tmp_path, monkeypatch, template):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dataset, "READING_S", 0.3)
    write(tmp_path / "d.jsonl", ROWS)
    for key in ("prompt", "answer"):
        assert isinstance(made("d.jsonl", **{key: template}), str)
    assert not (tmp_path / "RAN").exists()


def test_a_pattern_that_takes_for_ever_on_a_row_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "READING_S", 0.3)
    write(tmp_path / "d.jsonl", [*ROWS, {"prompt": "a", "answer": "a" * 40}])
    assert "pattern" in made(tmp_path / "d.jsonl", answer_pattern="(a+)+b|\\d+")


ATOMS = r"( { - 1 1, . $ \boxed{ \frac{ <answer> </answer> answer_is_ (A)_ A_or_".replace("_", "\t").split(" ")


@pytest.mark.parametrize("verify", [Verify.exact, Verify.number, Verify.choice])
def test_a_long_completion_is_compared_within_a_moment(tmp_path, verify):
    """A comparison in the run's process has no time limit: none may be worse than quadratic, and none raises."""
    write(tmp_path / "d.jsonl", ROWS)
    for extract in (each for each in Extract if each is not Extract.after):
        task = Dataset(path=str(tmp_path / "d.jsonl"), heldout=2, verify=verify, extract=extract)
        example = task.known_examples()[3]
        for atom in ATOMS:
            for text in (atom * (20_000 // len(atom)), (atom + "x \n") * 4000, "\ud800" + atom, "٣²½" + atom):
                assert task.judge(text, example).score in (0, 1)
    assert choice_of("answer " * 5000) == ""
