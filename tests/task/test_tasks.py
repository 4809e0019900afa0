"""Tasks: held-out prompts are fixed and never trained on, verifiers score answers, and bad files are refused."""

import pickle
from random import Random

import pytest

from bakeoff.batch import Example
from bakeoff.errors import UserError
from bakeoff.task.gym import Extract, ReasoningGym
from bakeoff.task.jsonl import Jsonl, read_examples
from bakeoff.task.sort import Sort


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


def test_an_unknown_generator_or_parameter_is_refused():
    with pytest.raises(UserError, match=r"task.generator is 'nonsense'"):
        ReasoningGym(generator="nonsense")
    with pytest.raises(UserError, match=r"task.parameters is .*chain_sum refuses"):
        ReasoningGym(parameters={"nonsense": 1})


def test_a_jsonl_task_reads_its_examples_and_ignores_blanks_around_an_answer(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(f'{{"prompt": "{i}+1=", "answer": "{i + 1}", "level": {i}}}' for i in range(9)) + "\n\n")
    task = Jsonl(path=str(path), heldout=3)
    assert read_examples(str(path))[4] == Example("4+1=", "5", {"level": 4})
    assert len(task.heldout_examples()) == 3
    assert task.verify(" 5\n", Example("4+1=", "5")) == 1


def test_a_column_of_some_lines_is_none_on_the_others(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "c", "answer": "d", "level": 1}')
    assert [example.columns for example in read_examples(str(path))] == [{"level": None}, {"level": 1}]


def test_a_generator_is_made_again_where_it_is_sent():
    task = ReasoningGym(generator="string_manipulation", heldout=3)  # its data set holds functions
    sent, example = pickle.loads(pickle.dumps(task)), task.generate(Random(0))
    assert sent == task
    assert sent.judge(example.answer, example) == task.judge(example.answer, example)


@pytest.mark.parametrize("score", [None, "1", float("nan"), float("inf"), 1e39])
def test_a_verifiers_score_that_is_no_number_is_refused(monkeypatch, score):
    monkeypatch.setattr(Sort, "verify", lambda self, completion, example: score)
    with pytest.raises(ValueError, match="no finite number"):
        Sort().judge("", Example("", ""))


@pytest.mark.parametrize(
    ("line", "reason"),
    [("not json", "line 2"), ('{"prompt": "x"}', "KeyError: 'answer'"), ("[1, 2]", "line 2"), ("3", "line 2")],
)
def test_an_unreadable_jsonl_line_is_named(tmp_path, line, reason):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "a", "answer": "b"}\n' + line)
    with pytest.raises(UserError, match=r"task.path: line 2 of") as caught:
        Jsonl(path=str(path))
    assert reason in str(caught.value)
