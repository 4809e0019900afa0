"""task=dataset: formats, templates, messages, held-out prompts of their own, bounds, and what rewards receive."""

import csv
import json
import pickle
from copy import deepcopy
from random import Random

import pandas
import pytest

from bakeoff.batch import Example
from bakeoff.errors import UserError
from bakeoff.model.encode import leave_out_long_prompts, render
from bakeoff.paths import CONF
from bakeoff.reward.reward import Reward
from bakeoff.task.dataset import Dataset
from bakeoff.task.task import as_read
from bakeoff.task.verify import Extract, Verify
from tests.conftest import compose, loop_of, update_of

WORDS = [
    {
        "question": f"Ann has {n} apples and gets {n}. How many?",
        "answer": f"{n} + {n} = {2 * n}\n#### {2 * n:,}",
        "level": n,
    }
    for n in range(500, 560)
]
GSM = {"prompt": "{{ question }}\n", "answer_pattern": "#### (.*)", "solution": "answer", "heldout": 8}


def write(path, rows):
    """The rows in the format of the file's ending."""
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        pandas.DataFrame(rows).to_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.mark.parametrize("name", ["train.jsonl", "train.json", "train.csv", "train.parquet", "train"])
def test_every_format_gives_the_same_examples(tmp_path, name):
    task = Dataset(path=write(tmp_path / name, WORDS), **GSM)
    example = task.known_examples()[3]
    assert (example.prompt, example.answer) == (WORDS[3]["question"] + "\n", "1,006")
    assert task.demonstration(example) == WORDS[3]["answer"]
    assert example.columns["question"] == WORDS[3]["question"]
    assert int(example.columns["level"]) == 503
    assert len(task.known_examples()) == len(WORDS)


def test_a_split_of_a_saved_table_is_cut_and_may_not_be_empty(tmp_path):
    import datasets

    datasets.Dataset.from_list(WORDS).save_to_disk(tmp_path / "d")
    some = Dataset(path=str(tmp_path / "d"), split="train[5:25]", **GSM)
    assert [e.columns["level"] for e in some.known_examples()] == list(range(505, 525))
    with pytest.raises(UserError, match=r"^task.path is .*(which is empty|out of range)"):
        Dataset(path=str(tmp_path / "d"), split="train[60:]", **GSM)


@pytest.mark.parametrize("saved", [True, False])
def test_a_folder_has_splits(tmp_path, saved):
    import datasets

    parts = {"train": WORDS[:40], "test": WORDS[35:]}
    if saved:
        datasets.DatasetDict({k: datasets.Dataset.from_list(v) for k, v in parts.items()}).save_to_disk(tmp_path / "d")
    else:
        (tmp_path / "d").mkdir()
        for part, rows in parts.items():
            write(tmp_path / "d" / f"{part}.jsonl", rows)
    task = Dataset(path=str(tmp_path / "d"), heldout_split="test", **GSM)
    assert len(task.final_examples()) == 8
    assert len(task.known_examples()) == 60
    assert "35 training prompts" in task.sizes()
    assert "25 held-out prompts of test, of which an evaluation reads 8" in task.sizes()
    assert "5 rows left out of training, whose prompts are held out" in task.sizes()
    some = Dataset(path=str(tmp_path / "d"), split="train[5:25]", **GSM)
    assert [e.columns["level"] for e in some.known_examples()] == list(range(505, 525))
    with pytest.raises(UserError, match=r"task.path is .*a folder that cannot be read \(its splits are .*not other"):
        Dataset(path=str(tmp_path / "d"), split="other", **GSM)


USER, ASSISTANT = {"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"prompt": "1+1"}, None),
        ({"prompt": "1+1", "answer": "2"}, "2"),
        ({"prompt": "1+1", "answer": 2}, "2"),
        ({"prompt": "1+1", "completion": "2"}, "2"),
        ({"messages": [USER, ASSISTANT]}, "2"),
        ({"prompt": [USER]}, None),
        ({"prompt": [USER], "answer": "2"}, "2"),
        ({"prompt": [USER], "completion": [ASSISTANT]}, "2"),
    ],
    ids=lambda row: "+".join(row) if isinstance(row, dict) else str(row),
)
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_the_formats_of_trl_load_as_they_are(tmp_path, row, answer, ending):
    [example] = Dataset(path=write(tmp_path / f"d.{ending}", [row])).known_examples()
    assert (example.prompt, example.answer, example.messages) == ("1+1", answer, [])
    assert set(example.columns) == set(row) - {"prompt", "answer"}


def test_a_chat_is_read_as_a_chat_and_its_own_system_prompt_comes_before_the_tasks(tmp_path, tiny):
    first = [{"role": "system", "content": "S"}, USER, ASSISTANT, {"role": "user", "content": "2+2"}]
    path = write(tmp_path / "d.jsonl", [{"messages": first}, {"messages": [{"role": "user", "content": "3+3"}]}])
    task = Dataset(path=path, system="T", examples=[{"prompt": "0+0", "completion": "0"}])
    chat, question = task.known_examples()
    assert chat.prompt == "user: 1+1\nassistant: 2\nuser: 2+2"
    shots = [Example("0+0", "0")]
    assert render(tiny, question, shots) == "T\n\n0+00\n3+3"
    assert render(tiny, chat, []) == "S\n\nuser: 1+1\nassistant: 2\nuser: 2+2"
    policy = deepcopy(tiny)
    policy.chat, policy.system = True, "M"
    policy.tokenizer.chat_template = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }} {% endfor %}"
    assert render(policy, chat, shots) == "s:S u:0+0 a:0 u:1+1 a:2 u:2+2 "
    assert render(policy, question, []) == "s:T u:3+3 "
    assert render(policy, Example("4+4", None), []) == "s:M u:4+4 "


def test_nothing_that_stands_in_data_is_executed(tmp_path):
    hostile = "{{ 7 * 7 }}{% for x in range(9) %}x{% endfor %}{{ ''.__class__ }}"
    path = write(tmp_path / "d.jsonl", [{"q": hostile, "answer": "1"}])
    assert Dataset(path=path, prompt="Q: {{ q }}").known_examples()[0].prompt == f"Q: {hostile}"
    for template in (
        "{{ q.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ absent }}",
        "{{ q.absent }}",
    ):
        with pytest.raises(UserError, match=r"task.path: line 1 of .*the columns are q, answer"):
            Dataset(path=path, prompt=template)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({}, r"no column prompt or messages; the columns are question, answer, level; task.prompt names one"),
        ({"prompt": "text"}, r"task.prompt is 'text', which is neither a column nor a template; the columns"),
        ({"prompt": "{{ question"}, r"task.prompt is .*which is not a Jinja template"),
        ({**GSM, "answer_pattern": "####("}, r"task.answer_pattern is '####\(', which is not a regular expression"),
        ({**GSM, "answer_pattern": "@@ (.*)"}, r"task.path: line 1 of .*answer_pattern '@@ \(.\*\)' is not in"),
        ({**GSM, "extract": Extract.after}, r"task.extract is after and task.after is ''"),
        ({**GSM, "verify": Verify.function}, r"task.verify is function and task.function is ''"),
        ({**GSM, "verify": Verify.function, "function": "os.nothing"}, r"task.function names 'os.nothing', which"),
        ({**GSM, "verify": Verify.function, "function": "./no.py:f"}, r"task.function names './no.py:f', but"),
        ({**GSM, "stop": ["\n", ""]}, r"task.stop is .* must have a character"),
        ({**GSM, "examples": [{"prompt": "x"}]}, r"task.examples has .*the keys prompt and completion"),
        ({**GSM, "heldout_split": "test"}, r"task.heldout_split is 'test', but task.path is the file .*no splits"),
        ({**GSM, "split": "train[:9]"}, r"task.split is 'train\[:9\]', but task.path is the file .*task.split=train"),
        ({**GSM, "answer_pattern": r"(\?)|\d*"}, r"line 1 of .*answer_pattern .* is not in"),
        ({**GSM, "heldout_path": "a/b", "heldout_share": 0.1}, r"task.heldout_share is 0.1, but task.heldout_path"),
        ({**GSM, "heldout_share": 1.0}, r"the held-out prompts leave no prompt to train on"),
    ],
)  # fmt: skip
def test_keys_that_do_not_fit_are_refused_in_a_sentence(tmp_path, keys, sentence):
    path = write(tmp_path / "d.jsonl", WORDS)
    with pytest.raises(UserError, match=sentence):
        Dataset(path=path, **keys)


@pytest.mark.parametrize("pattern", [r"####.*", r"(\d[\d,]*)|(\?)", r".*", r"[\d,]*", r"#### (.*)|$"])
def test_an_answer_is_the_last_match_that_has_a_text(tmp_path, pattern):
    task = Dataset(path=write(tmp_path / "d.jsonl", WORDS), **GSM | {"answer_pattern": pattern})
    assert all(each.answer.endswith(f"{int(each.columns['level']) * 2:,}") for each in task.known_examples())


@pytest.mark.parametrize("rows", [[{"q": "1"}, {"q": None}], [{"q": "1"}, {"other": "2"}]], ids=["null", "missing"])
@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
def test_a_template_never_writes_a_value_that_is_not_there(tmp_path, rows, ending):
    path = write(tmp_path / f"d.{ending}", rows)
    with pytest.raises(UserError, match=r"task.path: (line|row) 2 of .*missing or null"):
        Dataset(path=path, prompt="Q: {{ q }}")
    task = Dataset(path=path, prompt="Q: {% if q %}{{ q }}{% else %}?{% endif %}")
    assert [example.prompt for example in task.known_examples()] == ["Q: 1", "Q: ?"]


@pytest.mark.parametrize(
    ("typed", "ends"),
    [(r"\nuser:", "\nuser:"), (r"\n\n", "\n\n"), (r"\neq", r"\neq"), ("\nuser", "\nuser"), (r"\nA", "\nA")],
)
def test_a_line_feed_in_a_stop_string_is_one_before_any_letter(tmp_path, typed, ends):
    assert ends in Dataset(path=write(tmp_path / "d.jsonl", WORDS), stop=[typed], **GSM).stops()


def test_prompts_that_are_all_too_long_or_without_answers_are_named_by_their_set(tmp_path, tiny):
    rows = [{"prompt": "1" * n + "=", "answer": "1"} for n in range(1, 41)]
    task = Dataset(path=write(tmp_path / "d.jsonl", rows), heldout=2, max_prompt_tokens=30)
    task.max_prompt_tokens = min(len(each.prompt) for each in task.heldout_examples()) - 1
    with pytest.raises(UserError, match="leaves no prompt to evaluate on"):
        leave_out_long_prompts(tiny, task)
    held = write(tmp_path / "held.jsonl", [{"prompt": "5+5="}])
    assert "no answers to held-out prompts" in Dataset(path=task.path, heldout_path=held).sizes()
    held = write(tmp_path / "held.jsonl", [{"question": "5+5="}])
    with pytest.raises(UserError, match=r"task.heldout_path is '.*held.jsonl', which has no column prompt"):
        Dataset(path=task.path, heldout_path=held)


@pytest.mark.parametrize(
    ("arguments", "columns"),
    [
        *(("text, answer, **columns", 4), ("completion, level, /, **columns", 3), ("text, answer", 0), ("*both", 0)),
        *(("completion, answer, *, level", 1), ("wrote, answer, level, spare=1", 1), ("said, answer, **columns", 5)),
    ],
)
def test_a_function_gets_the_columns_that_it_takes_whatever_they_are_called(tmp_path, monkeypatch, arguments, columns):
    names = arguments.replace("/, ", "").replace("*, ", "").replace(", spare=1", "").split(", ")[2:]
    given = " + ".join(["0", *("len(columns)" if "*" in name else f"({name} == 3)" for name in names)])
    (tmp_path / "own.py").write_text(f"def score({arguments}):\n    return ({given}) / 10\n")
    extra = {"answer": "1", "completion": "1", "text": "2", "level": 3, "more": 4, "messages": []}
    monkeypatch.chdir(tmp_path)
    keys = {"verify": Verify.function, "function": "./own.py:score", "prompt": "{{ prompt }}"}
    task = Dataset(path=write(tmp_path / "d.jsonl", [{"prompt": f"{n}"} | extra for n in range(4)]), heldout=1, **keys)
    example = task.known_examples()[0]
    assert set(example.columns) == {"completion", "text", "level", "more", "messages"}
    assert task.judge("1", example).score * 10 == columns
    assert pickle.loads(pickle.dumps(task)).judge("1", example).score * 10 == columns


def test_a_function_that_needs_a_column_which_the_data_lack_is_refused(tmp_path, monkeypatch):
    (tmp_path / "own_verifier.py").write_text("def score(text, answer, difficulty, **columns):\n    return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = write(tmp_path / "d.jsonl", WORDS)
    for function in (f"{tmp_path}/own_verifier.py:score", "own_verifier.score"):
        with pytest.raises(UserError, match=r"needs the argument difficulty, but .* columns question, level; name one"):
            Dataset(path=path, **GSM, verify=Verify.function, function=function)


def test_a_function_of_a_module_is_part_of_the_tasks_files_as_one_of_a_file_is(tmp_path, monkeypatch):
    (tmp_path / "my_verifier.py").write_text("def score(text, answer):\n    return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    for function in (f"{tmp_path}/my_verifier.py:score", "my_verifier.score"):
        keys = {**GSM, "verify": Verify.function, "function": function}
        task = Dataset(path=write(tmp_path / "d.jsonl", WORDS), **keys)
        assert task.files()["function"] == f"{tmp_path}/my_verifier.py"
        assert deepcopy(task).function == function


def test_a_data_set_that_is_nowhere_is_refused_by_its_name():
    with pytest.raises(UserError, match=r"task.path is 'no-one/nothing', no file here, and a data set of the Hub that"):
        Dataset(path="no-one/nothing")


@pytest.mark.parametrize("ending", ["json", "csv", "parquet"])
@pytest.mark.parametrize("content", [b"", b"\x00\xff", b"[1, 2]", b'{"a": 1}', b'a,b\n1\n"'])
def test_a_file_of_another_kind_is_refused(tmp_path, ending, content):
    (path := tmp_path / f"d.{ending}").write_bytes(content)
    with pytest.raises(UserError, match=r"^task.path is"):
        Dataset(path=str(path))


def test_a_held_out_file_is_never_trained_on_however_its_prompts_are_written(tmp_path):
    held = [WORDS[0] | {"question": WORDS[0]["question"].replace(" ", "  ")}, *WORDS[40:]]
    keys = {**GSM, "heldout": 100, "prompt": "question"}
    task = Dataset(path=write(tmp_path / "a.csv", WORDS[:45]), heldout_path=write(tmp_path / "b.jsonl", held), **keys)
    read = {as_read(example.prompt) for example in task.heldout_examples()}
    assert len(read) == 21
    assert not read & {as_read(e.prompt) for e in task.training_examples(500, Random(0))}
    assert task.sizes().startswith(
        f"data: 39 training prompts of {task.path}; 21 held-out prompts of {task.heldout_path}"
    )
    assert "6 rows left out of training" in task.sizes()
    task.shots, task._reserved = 3, None
    shots = {as_read(shot.prompt) for shot in task.shot_examples()}
    assert len(shots) == 3
    assert "####" in task.shot_examples()[0].answer
    assert not shots & read
    assert not shots & {as_read(e.prompt) for e in task.training_examples(500, Random(0))}


def test_a_share_is_held_out_by_the_prompt_alone(tmp_path):
    few, all_ = (
        Dataset(path=write(tmp_path / f"{n}.jsonl", WORDS[:n]), heldout_share=0.3, **GSM | {"heldout": 60})
        for n in (30, 60)
    )
    held = [{example.prompt for example in task.heldout_examples()} for task in (few, all_)]
    assert held[0] < held[1]
    assert 0 < len(held[0]) < 30
    assert not held[1] & {e.prompt for e in all_.training_examples(300, Random(0))}


def test_prompts_longer_than_the_bound_are_dropped_from_both_sets_and_counted(tmp_path, tiny):
    rows = [{"prompt": "1" * n + "=", "answer": "1"} for n in range(1, 41)]
    task = Dataset(path=write(tmp_path / "d.jsonl", rows), heldout=12, max_prompt_tokens=30)
    before = [e.prompt for e in task.heldout_examples()]
    for _ in range(2):
        leave_out_long_prompts(tiny, task)
        assert [e.prompt for e in task.heldout_examples()] == [prompt for prompt in before if len(prompt) <= 30]
        assert max(len(e.prompt) for e in task.training_examples(300, Random(0))) <= 30
        assert "11 rows left out, with more than 30 tokens" in task.sizes()
    task = Dataset(path=task.path, heldout=12, max_prompt_tokens=1)
    with pytest.raises(
        UserError, match=r"is 1 and the shortest prompt above it has \d+, which leaves no prompt to train"
    ):
        leave_out_long_prompts(tiny, task)


def test_held_out_prompts_that_are_too_long_give_their_places_to_others_of_the_file(tmp_path):
    train = write(tmp_path / "a.jsonl", WORDS[:30])
    held = write(tmp_path / "b.jsonl", WORDS[30:])
    task = Dataset(path=train, heldout_path=held, max_prompt_tokens=1, **GSM)
    long = {as_read(example.prompt) for example in task.heldout_examples()}
    task.leave_out(dict.fromkeys(long, 8))
    read = {as_read(example.prompt) for example in task.heldout_examples()}
    assert len(long) == len(read) == task.heldout
    assert not long & read


def test_a_prompt_without_room_is_refused_before_anything_is_trained(tmp_path):
    rows = [{"prompt": "1" * n + "=", "answer": "1"} for n in range(1, 40)] + [{"prompt": "1" * 5000, "answer": "1"}]
    few = [f"task.path={write(tmp_path / 'd.jsonl', rows)}", "task=dataset", "task.heldout=4", "batch.prompts=2"]
    small = [*few, "tuned=none", "sft.steps=0", "batch.group_size=2", "task.max_new_tokens=4"]
    with pytest.raises(UserError, match=r"a prompt has 5000 tokens, but the model has .*task.max_prompt_tokens"):
        loop_of(compose(*small))
    assert update_of(loop_of(compose(*small, "task.max_prompt_tokens=64")))["progress/sequences"] == 4


def test_a_function_of_the_users_judges_in_a_worker_which_gets_no_data(tmp_path):
    (tmp_path / "own.py").write_text(
        "def near(text, answer, level, **columns):\n    return 1 - min(abs(int(text) - int(answer)), level) / level\n"
    )
    rows = [{"prompt": f"{n}+{n}=", "answer": str(2 * n), "level": 10} for n in range(40)]
    path = write(tmp_path / "d.jsonl", rows)
    keys = {"verify": Verify.function, "function": f"{tmp_path}/own.py:near"}
    task = Dataset(path=path, extract=Extract.after, after="is ", heldout=4, **keys)
    examples = task.known_examples()[3:5]
    judged = Reward(functions={"verifier": 1.0}).judge(task, ["it is 7", "it is none"], examples)
    assert [verdict.score for verdict in judged] == [0.9, 0]
    assert [verdict.failed for verdict in judged] == [False, True]
    assert len(pickle.dumps(task)) < 2000
    assert deepcopy(task).known_examples() == task.known_examples()


def test_math_is_verified_in_a_worker_within_its_time(tmp_path):
    path = write(tmp_path / "d.jsonl", [{"prompt": "a", "answer": r"\frac{1}{2}"}, {"prompt": "b", "answer": "2^{10}"}])
    task = Dataset(path=path, verify=Verify.math, extract=Extract.boxed)
    texts = [r"so $\boxed{0.5}$", r"\boxed{1024}", r"\boxed{9^{9^{9^{9}}}}", "none"]
    examples = [*task.known_examples(), task.known_examples()[0], task.known_examples()[0]]
    judged = Reward(functions={"verifier": 1.0}).judge(task, texts, examples)
    assert [verdict.score for verdict in judged] == [1, 1, 0, 0]


PRESETS = {
    "gsm8k": WORDS,
    "math": [
        {"problem": f"What is ${n}/2$?", "solution": rf"It is $\boxed{{\frac{{{n}}}{{2}}}}$.", "level": "Level 1"}
        for n in range(1, 100, 2)
    ],
    "countdown": [{"target": n + 3, "nums": [n, 2, 1]} for n in range(60)],
}
RIGHT = {"gsm8k": "#### 1006", "math": r"\boxed{3.5}", "countdown": "<answer>1 + 2 + 3</answer>"}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_reads_data_of_its_schema_and_knows_a_right_answer(tmp_path, name):
    """The Hub's own data has the same columns; splits are those of the preset."""
    assert (CONF / "task" / f"{name}.yaml").read_text().startswith("# ")
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "train.jsonl", PRESETS[name][:40])
    write(folder / "test.jsonl", PRESETS[name][40:])
    own = [f"task.path={folder}"]
    own += {"math": [f"task.heldout_path={folder}"], "countdown": ["task.heldout_split=test"]}.get(name, [])
    task = compose(f"task={name}", *own).task
    example = task.known_examples()[3]
    assert [task.judge(text, example).score for text in (RIGHT[name], "none")] == [1, 0]
    assert task.stops() == ()
    assert 0 < len(task.heldout_examples()) <= 20
    assert (task.demonstration(task.known_examples()[0]) is None) == (name == "countdown")


@pytest.mark.parametrize("answer", ["", " ", "\t\n", "\u00a0"])
@pytest.mark.parametrize("verify", [Verify.exact, Verify.number, Verify.choice, Verify.math])
def test_an_empty_answer_is_refused_by_its_row_where_it_is_compared(tmp_path, verify, answer):
    for ending in ("jsonl", "csv"):
        path = write(
            tmp_path / f"d.{ending}", [{"prompt": "1+1=", "answer": "2"}, {"prompt": "2+2=", "answer": answer}]
        )
        for keys in ({}, {"answer": "{{ answer }}"}, {"answer_pattern": "(?s).*"} if ending == "csv" else {}):
            with pytest.raises(UserError, match=r"task.path: (line|row) 2 of .*(answer is empty|is not in)"):
                Dataset(path=path, verify=verify, **keys)


def test_a_message_without_an_answer_is_refused_and_a_function_may_take_one(tmp_path, monkeypatch):
    empty = {"role": "assistant", "content": " "}
    with pytest.raises(UserError, match=r"line 1 of .*answer is empty"):
        Dataset(path=write(tmp_path / "m.jsonl", [{"messages": [USER, empty]}]))
    (tmp_path / "own.py").write_text("def score(text, answer):\n    return text == answer\n")
    path = write(tmp_path / "d.jsonl", [{"prompt": "a", "answer": ""}])
    assert (
        Dataset(path=path, verify=Verify.function, function=f"{tmp_path}/own.py:score").known_examples()[0].answer == ""
    )


@pytest.mark.parametrize(
    "number", ["1.10", "1e5", "12345678901234567890.0", "-0", "0.0", "12345678901234567890", "1E-7"]
)
def test_a_template_writes_a_number_as_the_file_has_it_and_computes_with_it(tmp_path, number):
    (path := tmp_path / "d.jsonl").write_text(
        f'{{"prompt": "a", "answer": {number}, "more": [{number}, 2], "in": {{"x": {number}}}}}'
    )

    def answer(template):
        return Dataset(path=str(path), answer=template).known_examples()[0].answer

    for template in (
        "{{ answer }}",
        "{{ more[0] }}",
        "{{ '' ~ answer }}",
        "{{ more[:1]|join }}",
        "{{ '%s'|format(answer) }}",
    ):
        assert answer(template) == answer("answer") == number
    assert answer("{{ more|join(', ') }}") == f"{number}, 2"
    assert answer("{% for each in more %}{{ each }};{% endfor %}") == f"{number};2;"
    value = json.loads(number)
    assert answer("{{ answer + more[1] }}") == str(value + 2)
    assert answer("{{ '%.2f'|format(answer * 2) }}") == f"{value * 2:.2f}"
    assert answer("{{ 'yes' if answer == more[0] and answer < 1e30 else 'no' }}") == "yes"


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "null", "true", "[1, 2]", '{"a": 1}'])
@pytest.mark.parametrize("template", ["{{ n }}", "{{ [n][0] }}", "{% set a = n %}{{ a }}", "{{ -n }}"])
def test_a_template_refuses_what_a_column_refuses(tmp_path, value, template):
    (path := tmp_path / "d.jsonl").write_text(f'{{"prompt": "a", "answer": "b", "n": {value}}}')
    template = "{{ not n }}" if (value, template) == ("true", "{{ -n }}") else template
    for key in ("prompt", "answer", "solution"):
        with pytest.raises(UserError, match=r"task.path: line 1 of .*the columns are prompt, answer, n"):
            Dataset(path=str(path), **{key: template})


@pytest.mark.parametrize(
    "template", ["{{ ''~answer }}", "{{ [answer]|join }}", "{{ answer|tojson }}", "{{ '%s'|format(answer) }}"]
)
def test_a_value_that_is_missing_reaches_no_text_through_a_filter(tmp_path, template):
    for value in ("NaN", "Infinity"):
        (path := tmp_path / "d.jsonl").write_text(f'{{"prompt": "a", "answer": {value}}}')
        with pytest.raises(UserError, match="line 1 of"):
            Dataset(path=str(path), answer=template)


DRAWING = [
    "{{ ['a', 'b']|random }}",
    "{{ range(9) | random }}",
    "{{ lipsum() }}",
    "{% filter random %}abc{% endfilter %}",
]
DRAWING += [
    "{{ ['ab', 'cd']|map('random')|join }}",
    '{{ q ~ (["a"] |map("random")|first) }}',
    "{% set a = 'ab'|random %}{{ a }}",
]


@pytest.mark.parametrize("template", DRAWING)
def test_a_template_that_draws_is_refused(tmp_path, template, tiny):
    path = write(tmp_path / "d.jsonl", [{"q": "a", "answer": "b"}])
    for keys in ({"prompt": template}, {"prompt": "q", "answer": template}, {"prompt": "q", "solution": template}):
        with pytest.raises(UserError, match=r"^task.(prompt|answer|solution) is .* draws at random"):
            Dataset(path=path, **keys)
    policy = deepcopy(tiny)
    policy.chat, policy.tokenizer.chat_template = True, "{% for m in messages %}{{ m.content }}{% endfor %}" + template
    with pytest.raises(UserError, match=r"^model.chat is true, but '(random|lipsum)' in the chat template draws"):
        render(policy, Example("q", ""), [])


def test_a_word_that_draws_nothing_is_a_text_like_any_other(tmp_path):
    path = write(tmp_path / "d.jsonl", [{"q": "a", "random": "b", "lipsum": "c", "answer": "d"}])
    for template in (
        "random lipsum {{ random }}{{ lipsum }}",
        "{{ 'a random'[2:] }} {{ 'lipsum' }} {{ random ~ lipsum }}",
    ):
        assert Dataset(path=path, prompt=template).known_examples()[0].prompt == "random lipsum bc"


@pytest.mark.parametrize(
    "name", ["self", "super", "true", "false", "none", "True", "False", "None", "loop", "in", "not", "if", "for"]
)
def test_a_column_that_is_called_as_a_word_of_jinja_is_written_or_refused(tmp_path, name):
    path = write(tmp_path / "d.jsonl", [{name: "text", "answer": "b"}])
    if name in ("loop", "in", "if", "for"):  # names like any other where nothing stands before them
        assert Dataset(path=path, prompt=f"{{{{ {name} }}}}").known_examples()[0].prompt == "text"
    else:
        with pytest.raises(UserError, match=r"^task.prompt is"):
            Dataset(path=path, prompt=f"{{{{ {name} }}}}")
    assert Dataset(path=path, prompt=name).known_examples()[0].prompt == "text"
    assert Dataset(path=path, prompt="{{ answer }}").known_examples()[0].prompt == "b"


@pytest.mark.parametrize(
    "part", ["[3]", "[0]", "[", "[:3", "[3:]]]", "[::2]", "[:10%]", "[a:]", "[-:]", "]", "[]", "[1:2][3:4]", "[ 1:]"]
)
def test_a_part_of_a_split_is_one_of_rows_or_refused(tmp_path, part):
    import datasets

    datasets.Dataset.from_list(WORDS).save_to_disk(tmp_path / "d")
    for split in (f"train{part}", part):
        with pytest.raises(UserError, match=r"task.path is .*its split is .*, or rows of it, as train\[5:25\]"):
            Dataset(path=str(tmp_path / "d"), split=split, **GSM)


@pytest.mark.parametrize("part", ["[:]", "[5:]", "[:5]", "[-5:]", "[:-5]", "[5:9]", "[5:900]", ""])
def test_a_part_of_a_split_has_the_rows_of_a_slice(tmp_path, part):
    import datasets

    datasets.Dataset.from_list(WORDS).save_to_disk(tmp_path / "d")
    begin, _, end = part.strip("[]").partition(":")
    rows = WORDS[int(begin) if begin else None : int(end) if end else None]
    found = Dataset(path=str(tmp_path / "d"), split=f"train{part}", **GSM | {"heldout": 1}).known_examples()
    assert [each.columns["level"] for each in found] == [row["level"] for row in rows]


@pytest.mark.parametrize("name", ["a\0b", "\0", "a/b\0", "\0.csv", "n" * 300, "\ud800", "a/\ud800"])
@pytest.mark.parametrize("ending", ["", ".jsonl", ".json", ".csv", ".parquet"])
def test_a_path_that_no_file_can_have_is_refused_in_a_sentence(tmp_path, name, ending):
    held = write(tmp_path / "d.jsonl", [{"prompt": "a", "answer": "b"}])
    with pytest.raises(UserError, match=r"^task.path is .*cannot be read"):
        Dataset(path=name + ending)
    with pytest.raises(UserError, match=r"^task.heldout_path is .*cannot be read"):
        Dataset(path=held, heldout_path=name + ending)
