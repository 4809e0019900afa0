"""Tasks: held-out prompts are fixed and never trained on, verifiers score answers, and bad files are refused."""

import json
import os
import pickle
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bakeoff.batch import Example
from bakeoff.errors import UserError
from bakeoff.task.dataset import Dataset
from bakeoff.task.gym import ReasoningGym
from bakeoff.task.sort import Sort
from bakeoff.task.table import LONGEST_LINE, Format
from bakeoff.task.verify import Extract


def jsonl(path, **keys) -> Dataset:
    """The task=jsonl of that file."""
    return Dataset(path=str(path), format=Format.jsonl, **keys)


def read_examples(path) -> list[Example]:
    return jsonl(path).known_examples()


def test_sort_accepts_the_sorted_digits_and_no_other_answer():
    task = Sort(digits=10, max_new_tokens=11)
    example = task.generate(Random(0))
    digits, equals = example.prompt[:-1], example.prompt[-1]
    assert (len(digits), equals) == (10, "=")
    assert example.answer == "".join(sorted(digits))
    assert task.verify(example.answer, example) == 1
    assert task.verify(example.answer[::-1], example) == 0
    assert task.verify(example.answer + "9", example) == 0


def test_sort_scores_each_digit_up_to_the_first_wrong_one():
    """Digits after the first wrong one are wrong too; missing digits are wrong steps at the end."""
    task, example = Sort(digits=4, max_new_tokens=9), Example("4321=", "1234")
    assert task.verify_steps("1234", example) == [(1, 0.25), (2, 0.25), (3, 0.25), (4, 0.25)]
    assert task.verify_steps("1244", example) == [(1, 0.25), (2, 0.25), (3, 0.0), (4, 0.0)]
    assert task.verify_steps("12", example) == [(1, 0.25), (2, 0.25), (3, 0.0), (3, 0.0)]
    assert task.verify_steps("12345", example)[-1] == (5, 0.0)
    assert [task.judge(text, example).grade for text in ("1234", "1244", "", "12345")] == [1, 0.25, 0, 0.5]


@pytest.mark.parametrize(
    "task",
    [
        Sort(digits=2, heldout=60, max_new_tokens=3),
        ReasoningGym(heldout=60, parameters={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}),
    ],
    ids=["sort", "gym"],
)
def test_heldout_prompts_are_fixed_distinct_and_never_trained_on(task):
    held = [example.prompt for example in task.heldout_examples()]
    task._reserved = None
    assert held == [example.prompt for example in task.heldout_examples()]
    assert len(set(held)) == 60
    trained = {example.prompt for example in task.training_examples(300, Random(1))}
    assert trained
    assert not trained & set(held)


@pytest.mark.parametrize(
    ("digits", "final", "least", "most"), [(10, 700, 700, 700), (3, 700, 50, 200), (2, 700, 40, 45)]
)
def test_the_last_evaluation_has_more_held_out_prompts_as_many_as_the_task_can_spare(digits, final, least, most):
    task = Sort(digits=digits, heldout=40, shots=2, max_new_tokens=digits + 1)
    before = task.heldout_examples()
    task.final, task._reserved = final, None
    examples = task.final_examples()
    assert least <= len(examples) <= most
    assert examples[:40] == task.heldout_examples() == before
    held = {example.prompt for example in examples}
    assert len(held) == len(examples)
    assert not held & {example.prompt for example in task.training_examples(500, Random(1)) + task.shot_examples()}


def test_shots_are_neither_held_out_nor_trained_on():
    task = Sort(digits=2, heldout=20, shots=3, max_new_tokens=3)
    shots = {example.prompt for example in task.shot_examples()}
    assert len(shots) == 3
    assert not shots & {example.prompt for example in task.heldout_examples()}
    assert not shots & {example.prompt for example in task.training_examples(500, Random(1))}


def test_the_same_seed_gives_the_same_prompts():
    task = Sort(max_new_tokens=11)
    assert task.training_examples(5, Random(4)) == task.training_examples(5, Random(4))
    assert task.training_examples(5, Random(4)) != task.training_examples(5, Random(5))


def test_more_heldout_prompts_than_the_task_has_are_refused():
    with pytest.raises(UserError, match=r"task.heldout is 20, but the task has only 10 distinct prompts"):
        Sort(digits=1, heldout=20, max_new_tokens=3).heldout_examples()


def test_gym_scores_with_the_generators_own_scorer():
    task = ReasoningGym(generator="chain_sum")
    example = task.generate(Random(0))
    assert task.verify(example.answer, example) == 1
    assert task.verify(f"{example.answer}\nand more", example) == 1, "only the first line is the answer"
    assert task.verify("no idea", example) < 1


def test_every_extraction_finds_its_answer_in_the_text():
    assert Extract.last_number("so 3 + 4 = 7.") == "7"
    assert Extract.last_number("none") == ""
    assert Extract.answer_tag("a <answer> 12 </answer> b") == "12"
    assert Extract.first_line(" 5 \n6") == "5"
    assert Extract.whole(" a\nb ") == "a\nb"


@given(
    st.one_of(st.integers(-(10**12), 10**12), st.floats(-1e6, 1e6), st.floats(allow_nan=False, allow_infinity=False)),
    st.sampled_from(["{}", "{:,}", "{:e}", "{:.2f}", "{:,.3f}", "{:+}"]),
    st.sampled_from(["The answer is {}.", "{}", "${}", "x = {}, so it is.", "({})", "12, 3 and {}", "3 - {}"]),
)
@settings(deadline=None)
def test_the_last_number_of_a_text_is_the_number_that_was_written(number, form, sentence):
    written = form.format(number)
    assert float(Extract.last_number(sentence.format(written))) == float(written.replace(",", ""))


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_only_a_line_feed_ends_a_json_line(tmp_path, separator, mark, end):
    texts = [f"a{separator}b", "c"]
    lines = [json.dumps({"prompt": text, "answer": "1"}, ensure_ascii=False).encode() for text in texts]
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(mark + end.join(lines) + end)
    assert [example.prompt for example in read_examples(path)] == texts


@pytest.mark.parametrize("written", ["1.0", "1e22", "-0", "12345678901234567890", "0.10"])
def test_a_number_stands_for_its_text_as_the_file_has_it(tmp_path, written):
    path = tmp_path / "pairs.jsonl"
    path.write_text(f'{{"prompt": {written}, "answer": {written}}}')
    assert read_examples(path) == [Example(written, written)]


def test_every_example_of_a_file_has_every_column(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "c", "answer": "d", "level": 3}')
    assert [example.columns for example in read_examples(path)] == [{"level": None}, {"level": 3}]


def test_a_pipe_a_device_a_folder_and_an_endless_line_are_refused_at_once(tmp_path):
    os.mkfifo(pipe := tmp_path / "pipe")
    (endless := tmp_path / "endless").write_bytes(b" " * (LONGEST_LINE + 1))
    for path in (pipe, "/dev/zero", tmp_path, tmp_path / "absent", tmp_path / ("n" * 300), endless):
        with pytest.raises(UserError, match=r"^task.path"):
            read_examples(path)


def test_a_prompt_that_differs_in_white_space_alone_is_held_out_too(tmp_path):
    path = tmp_path / "pairs.jsonl"
    prompts = [f"{number}+1={end}" for number in range(40) for end in ("", " ", "\n")]
    path.write_text("\n".join(json.dumps({"prompt": prompt, "answer": "1"}) for prompt in prompts))
    task = jsonl(path, heldout=20)
    held = {example.prompt.strip() for example in task.heldout_examples()}
    assert len(held) == 20
    assert not held & {example.prompt.strip() for example in task.training_examples(500, Random(0))}


def test_a_task_without_answers_has_no_demonstrations_and_no_solved_examples():
    task = ReasoningGym(generator="graph_color", heldout=2)
    assert task.demonstration(task.generate(Random(0))) is None
    with pytest.raises(UserError, match=r"task.shots is 1, but the task's examples have no answer"):
        ReasoningGym(generator="graph_color", heldout=2, shots=1).shot_examples()


def test_an_unknown_generator_or_parameter_is_refused():
    with pytest.raises(UserError, match=r"task.generator is 'nonsense'"):
        ReasoningGym(generator="nonsense")
    with pytest.raises(UserError, match=r"task.parameters is .*chain_sum refuses"):
        ReasoningGym(parameters={"nonsense": 1})


def test_a_jsonl_task_reads_its_examples_and_ignores_blanks_around_an_answer(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(f'{{"prompt": "{i}+1=", "answer": "{i + 1}", "level": {i}}}' for i in range(9)) + "\n\n")
    task = jsonl(path, heldout=3)
    assert read_examples(path)[4] == Example("4+1=", "5", {"level": 4})
    assert len(task.heldout_examples()) == 3
    assert task.judge(" 5\n", Example("4+1=", "5")).score == 1


def test_a_generator_is_made_again_where_it_is_sent():
    task = ReasoningGym(generator="string_manipulation", heldout=3)  # its data set holds functions
    sent, example = pickle.loads(pickle.dumps(task)), task.generate(Random(0))
    assert sent == task
    assert sent.judge(example.answer, example) == task.judge(example.answer, example)


@pytest.mark.parametrize("score", [None, "1", float("nan"), float("inf"), 1e39])
def test_a_verifiers_score_that_is_no_number_is_refused(monkeypatch, score):
    monkeypatch.setattr(Sort, "verify", lambda self, completion, example: score)
    with pytest.raises(ValueError, match="not a finite number"):
        Sort().judge("", Example("", ""))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("not json", "Expecting value"),
        ("{" * 10_000, "Expecting property name"),
        ("[" * 100_000, "recursion"),
        ("1" * 5_000, "digits"),
        ("[1, 2]", "it is a list"),
        ("3", "it is a int"),
        ('{"prompt": "x"}', "answer is missing"),
        *((f'{{"prompt": "x", "answer": {value}}}', "is not a text") for value in ("null", "true", '["4"]', "{}")),
        ('{"prompt": [{"role": "user", "content": ["1+1"]}], "answer": "2"}', "prompt has"),
        ('{"prompt": [], "answer": "2"}', "prompt is empty"),
        ('{"prompt": ["1+1"], "answer": "2"}', "is not a message"),
        ('{"prompt": " \\n", "answer": "2"}', "prompt is empty"),
        ('{"prompt": "\\ud800", "answer": "2"}', "surrogates not allowed"),
    ],
)
def test_an_unreadable_jsonl_line_is_named(tmp_path, line, reason):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "a", "answer": "b"}\n' + line)
    with pytest.raises(UserError, match=r"task.path: line 2 of") as caught:
        jsonl(path)
    assert reason in str(caught.value)
