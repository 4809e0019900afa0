"""Functions of a user: in a file, with the arguments that they name, None where they do not apply, and their faults."""

import os
import pickle
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser

from bakeoff import validation
from bakeoff.errors import UserError
from bakeoff.metrics import term_metrics
from bakeoff.reward.function import UserFunction, as_scores
from bakeoff.reward.isolation import attempt
from bakeoff.reward.reward import Reward
from bakeoff.task.sort import Sort
from tests.conftest import loop_of, update_of
from tests.reward.test_reward import rollout  # noqa: F401

trusted = partial(Reward, isolated=False)
SMALL = ("tuned=none", "sft.steps=0", "task.heldout=4", "batch.prompts=2", "batch.group_size=2")
MINE = """import helper_of_mine


def brevity(prompts, completions, answer, **columns):
    return [-helper_of_mine.size(text) / 10 for text in completions]


def named(completions):
    return [float(len(text)) for text in completions]


def long_ones(completions, **columns):
    return [1.0 if len(text) == 2 else None for text in completions]


def never(completions, **columns):
    return [None for _ in completions]


def fragile(completions, **columns):
    return [1 / (len(text) - 1) for text in completions]


def broken(completions, **columns):
    return [inner(text) for text in completions]


def inner(text):
    return {}["level"]


def needs(completions, difficulty, weight=1):
    return [0.0] * len(completions)


def needs_beside_others(completions, difficulty, **columns):
    return [0.0] * len(completions)


def by_position(completions, /):
    return [0.0] * len(completions)


def unfinished(completions, **columns):
    return [None, "high"] * (len(completions) // 2)


class Callable:
    def __call__(self, completions, **columns):
        return [2.0] * len(completions)


instance, PI = Callable(), 3
"""


@pytest.fixture(autouse=True)
def _in_a_folder_of_theirs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "rewards_of_mine", raising=False)  # of the test before
    Path("rewards_of_mine.py").write_text(MINE)
    Path("helper_of_mine.py").write_text("size = len\n")
    Path("wrong.py").write_text("def f(completions:\n    pass\n")
    Path("fails.py").write_text("x = 1\ny = {}['level']\n")


def compose(*overrides):
    """Composed anew: a path in it is relative to the working folder."""
    GlobalHydra.instance().clear()
    return validation.compose(overrides)


def line_of(text):
    return 1 + next(number for number, line in enumerate(MINE.splitlines()) if text in line)


def user(name, key="reward.functions"):
    return UserFunction(name, key, as_scores, ("verifier",))


@pytest.mark.parametrize(
    "name", ["./rewards_of_mine.py:brevity", "rewards_of_mine.py:brevity", "rewards_of_mine.brevity"]
)
def test_a_function_in_a_file_is_the_function_of_its_module(rollout, name, tmp_path):  # noqa: F811
    for path in (name, f"{tmp_path}/rewards_of_mine.py:brevity"):
        reward = trusted({path: 2.0})
        scores = reward(Sort(digits=2), rollout)
        assert scores.total.tolist() == pytest.approx([-0.4, -0.2, -0.4, 0])
        assert list(scores.terms) == ["rewards_of_mine.brevity"]
        assert list(reward.files().values()) == [f"{tmp_path}/rewards_of_mine.py"]


def test_an_isolated_worker_finds_the_file_wherever_the_run_has_gone(rollout, tmp_path, monkeypatch):  # noqa: F811
    reward = Reward({"./rewards_of_mine.py:brevity": 2.0}, timeout_s=20)
    monkeypatch.chdir("/")
    assert reward(Sort(digits=2), rollout).total.tolist() == pytest.approx([-0.4, -0.2, -0.4, 0])


@pytest.mark.parametrize("folder", ["a+b", "a@b", "my project (2)", "münchen ✓", "a~b,c=d", "it's"])
def test_the_working_folder_of_a_file_may_have_any_name(folder, tmp_path, monkeypatch):
    (there := tmp_path / folder).mkdir()
    (there / "rewards_here.py").write_text("def f(completions, **columns):\n    return [1.0 for _ in completions]\n")
    monkeypatch.chdir(there)
    for function in (*Reward({"./rewards_here.py:f": 1.0}).user.values(), user("./rewards_here.py:f")):
        assert pickle.loads(pickle.dumps(function))({"completions": ["a", "b"]}) == [1.0, 1.0]
    with pytest.raises(UserError, match="whose path cannot be logged"):
        Reward({f"{there}/rewards_here.py:f": 1.0})


def test_a_changed_file_is_read_anew_and_functions_of_one_file_share_its_module():
    first, same = user("./rewards_of_mine.py:brevity"), user("./rewards_of_mine.py:named")
    assert first._function.__globals__ is same._function.__globals__
    Path("rewards_of_mine.py").write_text(MINE.replace("/ 10", "/ 1000"))
    arguments = {"completions": ["ab"], "prompts": [""], "answer": [""]}
    assert user("./rewards_of_mine.py:brevity")(arguments) != first(arguments)


def test_a_function_without_columns_receives_the_arguments_that_it_names(rollout):  # noqa: F811
    assert trusted({"./rewards_of_mine.py:named": 1.0})(Sort(digits=2), rollout).total.tolist() == [2, 1, 2, 0]
    assert trusted({"./rewards_of_mine.py:instance": 1.0})(Sort(digits=2), rollout).total.tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("./no.py:f", r"no file '.*/no.py'; write its path relative to the working folder"),
        ("./rewards_of_mine.py:brevty", r"no function 'brevty'; write ./rewards_of_mine.py:NAME .*\(brevity, named"),
        ("./rewards_of_mine.py", r"no function ''; write ./rewards_of_mine.py:NAME"),
        ("./rewards_of_mine.py:", r"no function ''; write ./rewards_of_mine.py:NAME"),
        ("./rewards_of_mine.py:PI", "which is of type int, not a function"),
        ("./rewards_of_mine.py:by_position", "takes 'completions' by position"),
        ("./wrong.py:f", r"raised SyntaxError: .* \(.*/wrong.py:1\)"),
        ("./fails.py:f", r"raised KeyError: 'level' \(.*/fails.py:2\)"),
        ("wrong.f", r"raised SyntaxError: .* \(.*/wrong.py:1\)"),
        (
            "no_module_of_mine.f",
            r"raised ModuleNotFoundError: No module named 'no_module_of_mine'\); .* ./file.py:func",
        ),
        (".//rewards_of_mine.py:brevity", "whose path cannot be logged"),
    ],
)
def test_a_function_that_cannot_be_found_is_refused_with_what_to_type(name, words):
    with pytest.raises(UserError, match=rf"reward\.functions.* '?{re.escape(name)}.*{words}") as caught:
        Reward({name: 1.0})
    assert "\n" not in str(caught.value)


def test_two_functions_of_one_name_are_refused():
    with pytest.raises(UserError, match="two of which would share a metric"):
        Reward({"./rewards_of_mine.py:brevity": 1.0, "rewards_of_mine.brevity": 1.0})
    with pytest.raises(UserError, match=r"measure\.functions names two functions brevity"):
        compose("measure.functions=[./rewards_of_mine.py:brevity, rewards_of_mine.brevity]")


def test_an_exception_is_reported_with_the_line_of_theirs_that_raised_it(rollout):  # noqa: F811
    reward = trusted({"./rewards_of_mine.py:broken": 1.0})
    with pytest.raises(UserError) as caught:
        reward(Sort(digits=2), rollout)
    assert f"broken ({Path.cwd()}/rewards_of_mine.py:{line_of('def broken')}) raised KeyError: 'level'" in str(
        caught.value
    )
    assert f"({Path.cwd()}/rewards_of_mine.py:{line_of('level')})" in str(caught.value)


def test_a_failure_on_some_completions_is_reported_once_with_its_line(rollout):  # noqa: F811
    reward, reports = trusted({"./rewards_of_mine.py:fragile": 1.0}), []
    reward.report = reports.append
    for _ in range(2):
        scores = reward(Sort(digits=2), rollout)
        assert scores.failed.tolist() == [False, True, False, False]
        assert scores.total.tolist() == [1, 0, 1, -1]
    (report,) = reports
    assert f"raised ZeroDivisionError: division by zero ({Path.cwd()}/rewards_of_mine.py:{line_of('- 1)')})" in report


def test_an_entry_that_is_no_score_is_named_with_the_functions_line(rollout):  # noqa: F811
    with pytest.raises(
        UserError, match=rf"rewards_of_mine.py:{line_of('def unfinished')}\) returned 'high' for completion 1"
    ):
        trusted({"./rewards_of_mine.py:unfinished": 1.0})(Sort(digits=2), rollout)


def test_none_leaves_a_completion_out_of_the_sum_and_of_the_metric(rollout):  # noqa: F811
    reward, reports = (
        trusted({"./rewards_of_mine.py:long_ones": 2.0, "verifier": 1.0, "rewards_of_mine.never": 5.0}),
        [],
    )
    reward.report = reports.append
    scores = reward(Sort(digits=2), rollout)
    assert scores.total.tolist() == [3, 0, 2, 0]
    assert not scores.failed.any()
    assert term_metrics(scores.terms) == {
        **{f"reward/term_rewards_of_mine.long_ones{end}": 1 for end in ("", "_min", "_max")},
        **{"reward/term_verifier": 0.25, "reward/term_verifier_min": 0, "reward/term_verifier_max": 1},
    }
    assert reports == [
        "rewards_of_mine.never returned None for every completion of a rollout, to which it adds nothing"
    ]


@pytest.mark.parametrize("name", ["needs", "needs_beside_others"])
def test_an_argument_that_the_examples_lack_is_refused_before_anything_is_trained(name):
    config = compose(*SMALL, "sft.steps=1000", f"reward.functions={{./rewards_of_mine.py:{name}: 1}}")
    with pytest.raises(UserError, match=r"needs the argument difficulty, but is called with prompts, completions, ans"):
        loop_of(config)


@pytest.mark.parametrize(
    ("override", "functions"),
    [
        (
            "reward.functions={./rewards_of_mine.py:brevity: 0.1}",
            {"verifier": 1.0, "./rewards_of_mine.py:brevity": 0.1},
        ),
        ("+reward.functions={./rewards_of_mine.py:brevity:1}", {"verifier": 1.0, "./rewards_of_mine.py:brevity": 1.0}),
        (
            "++reward.functions={./rewards_of_mine.py:brevity: 0.1, verifier: -1, ./rewards_of_mine.py:fragile : 2}",
            {"verifier": -1, "./rewards_of_mine.py:brevity": 0.1, "./rewards_of_mine.py:fragile": 2},
        ),
        (
            r"+reward.functions={./rewards_of_mine.py\:brevity: 0.1}",
            {"verifier": 1.0, "./rewards_of_mine.py:brevity": 0.1},
        ),
        ("reward.functions={length: 0.5}", {"verifier": 1.0, "length": 0.5}),
    ],
)
def test_a_file_may_be_a_key_on_the_command_line(override, functions):
    assert compose(override).reward.functions == functions


@pytest.mark.parametrize(
    ("key", "text"), [("task.system", "run main.py:f : then"), ("task.prompt", "see x.py:main: {{ q }}")]
)
def test_any_other_text_that_names_a_file_stays_as_it_is(key, text):
    (parsed,) = OverridesParser.create().parse_overrides([f"{key}='{text}'"])
    assert parsed.value() == text


def test_sweeps_keep_the_file_in_their_values():
    parser = OverridesParser.create()
    sweep = "+reward.functions={./rewards_of_mine.py:brevity: 0.1},{./rewards_of_mine.py:brevity: 0.2}"
    (parsed,) = parser.parse_overrides([sweep])
    again = parser.parse_overrides([f"+reward.functions={value}" for value in parsed.sweep_string_iterator()])
    assert [each.value() for each in again] == [
        {"./rewards_of_mine.py:brevity": 0.1},
        {"./rewards_of_mine.py:brevity": 0.2},
    ]


def test_the_quotes_of_the_docs_are_those_of_bash():
    """Bash hands every word of the page's commands on as one argument that composes."""
    page = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
    commands = [line.strip() for line in page.splitlines() if re.match(r" {4}bakeoff .*(\.py:|measure)", line)]
    assert len(commands) >= 2
    for command in commands:
        script = f'bakeoff() {{ printf "%s\\0" "$@"; }}; {command}'
        words = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.split("\0")
        assert all(re.match(r"[+~]*[\w./]+=", word) for word in words[:-1]), command


def test_format_is_one_where_the_whole_completion_has_the_tags_in_order(rollout):  # noqa: F811
    right = ["<think>a\nb</think>\n<answer>3</answer>\n", "<think></think><answer></answer>"]
    wrong = [
        "<answer>3</answer><think>a</think>",
        "<think>a<think>b</think></think><answer>3</answer>",
        "<think>a</think><answer>3</answer> and more",
        "<think>a</think><answer>3",
        "",
    ]
    for text in (*right, *wrong):
        rollout.completions[0] = text
        assert Reward({"format": 1.0})(Sort(digits=2), rollout).total[0] == (text in right), text


def test_format_takes_other_tags_or_a_pattern_and_refuses_one_that_is_none(rollout):  # noqa: F811
    rollout.completions[:] = ["<a>1</a>", "7 = seven", "7", ""]
    task = Sort(digits=2)
    assert compose("reward.functions={format: 1}", "reward.format.tags=[a]").reward(task, rollout).terms[
        "format"
    ].tolist() == [1, 0, 0, 0]
    found = compose("reward.functions={format: 1}", r"reward.format.pattern='\d+ = \w+'").reward(task, rollout)
    assert found.terms["format"].tolist() == [0, 1, 0, 0]
    with pytest.raises(UserError, match=r"reward\.format\.pattern is '\(', no regular expression: missing \)"):
        compose(r"reward.format.pattern='('")
    with pytest.raises(UserError, match=r"reward\.format\.tags and reward\.format\.pattern are empty"):
        compose("reward.format.tags=[]")


def test_a_pattern_that_takes_for_ever_ends_and_fails_that_completion_alone(rollout, monkeypatch):  # noqa: F811
    monkeypatch.setattr("bakeoff.reward.builtin.PATIENCE_S", 0.05)
    reward = compose("reward.functions={format: 1}", "reward.format.pattern='(a|aa)+(b|a)+(a|aa)+'").reward
    rollout.completions[:] = ["a" * 60 + "c", "aaa", "b", ""]
    reports = []
    reward.report = reports.append
    scores = reward(Sort(digits=2), rollout)
    assert scores.failed.tolist() == [True, False, False, False]
    assert scores.terms["format"].tolist() == [0, 1, 0, 0]
    assert reports == [
        "reward.format.pattern took more than 0.05 s on a completion; its score there is 0, and reward/failed counts "
        "all such failures"
    ]


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_length_falls_linearly_over_its_margin_to_minus_one_at_the_budget(rollout, share):  # noqa: F811
    rollout.max_tokens = 4
    scores = compose("reward.functions={length: 3}", f"reward.length.margin_share={share}").reward(Sort(), rollout)
    lengths = rollout.sequences.mask.sum(1)
    expected = -(lengths / 4 - (1 - share)).clamp(min=0) / share
    torch.testing.assert_close(scores.terms["length"], expected)


def test_a_sum_of_all_kinds_trains_and_logs_each_with_its_range():
    reward = "reward.functions={./rewards_of_mine.py:brevity: 0.1, format: 0.5, length: 0.2}"
    metrics = update_of(loop_of(compose(*SMALL, reward)))
    for name in ("verifier", "rewards_of_mine.brevity", "format", "length"):
        mean, least, most = (metrics[f"reward/term_{name}{end}"] for end in ("", "_min", "_max"))
        assert least <= mean <= most


@pytest.mark.parametrize(
    "returned", [{0: 1.0, 1: 1.0}, {1.0, 2.0}, frozenset({1.0, 2.0}), {0: 1, 1: 2}.keys(), "11", b"11"]
)
def test_scores_without_the_order_of_the_completions_are_refused(returned):
    with pytest.raises(UserError, match="a list with one entry for each of the 2 completions"):
        as_scores("mine", returned, 2)


@pytest.mark.parametrize(
    "kind", [list, tuple, iter, np.array, torch.tensor, lambda scores: dict(enumerate(scores)).values()]
)
def test_scores_in_order_are_those_of_a_list(kind):
    assert as_scores("mine", kind([0.5, 2.0]), 2) == [0.5, 2.0]


def test_what_a_function_does_to_torch_and_to_its_process_stays_its_own():
    def careless(completions):
        torch.set_default_dtype(torch.bfloat16)
        torch.set_default_device("meta")
        torch.set_grad_enabled(False)
        return [1.0 if os.fork() else 2.0 for _ in completions]

    assert attempt(careless, (["a", "b"],)) == [1.0, 1.0], "of this process alone"
    assert torch.is_grad_enabled()
    assert torch.ones(1).dtype is torch.float32
    assert torch.ones(1).device == torch.device("cpu")
