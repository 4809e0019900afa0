"""What a user types or brings is refused in one sentence: paths, values of a command line, rates, expressions."""

import os

import pandas as pd
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from bakeoff.arms import one_by_one
from bakeoff.errors import UserError, refused
from bakeoff.init import write
from bakeoff.report.store import select
from bakeoff.tune import methods_of, numbers, parse, seeds_of


def broken(folder, kind):
    """A path at which no folder can be made."""
    (folder / "file").write_text("")
    (folder / "dangling").symlink_to(folder / "nowhere" / "x")
    (folder / "loop").symlink_to(folder / "loop")
    return {
        "a file": folder / "file",
        "below a file": folder / "file" / "x",
        "a name that is too long": folder / ("x" * 300),
        "a dangling link": folder / "dangling",
        "a link to itself": folder / "loop" / "x",
        "below /proc": "/proc/x/y",
    }[kind]


KINDS = ["a file", "below a file", "a name that is too long", "a dangling link", "a link to itself", "below /proc"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_cannot_be_made_is_one_sentence_with_its_path(kind, tmp_path):
    path = broken(tmp_path, kind)
    with (
        pytest.raises(UserError, match=r"a file or folder cannot be written \(.+: '.+'\); .* choose another"),
        refused(),
    ):
        os.makedirs(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_project_is_not_written_where_no_folder_can_be_made(kind, tmp_path):
    with pytest.raises(UserError, match="choose"), refused():
        write(tmp_path.__class__(broken(tmp_path, kind)))


def test_a_file_that_code_of_ours_misses_is_no_mistake_of_the_user(tmp_path):
    with pytest.raises(FileNotFoundError), refused():
        (tmp_path / "missing").read_text()


@pytest.mark.parametrize("typed", ["seed=１", "seed=1 # x", "hydra.run.dir='a", "model.name=it's"])
def test_an_override_beyond_the_grammar_is_named_with_the_quotes_that_it_takes(typed):
    with pytest.raises(UserError, match=r"cannot be read as KEY=VALUE; .*takes quotes of its own") as raised, refused():
        OverridesParser.create().parse_overrides([typed])
    assert typed in str(raised.value)


@pytest.mark.parametrize("typed", ["seed=range(0)", "seed=range(5,5)", "seed=range(3,1)"])
def test_a_sweep_over_no_value_is_refused(typed):
    with pytest.raises(UserError, match="has no value"):
        one_by_one(OverridesParser.create().parse_override(typed))


@pytest.mark.parametrize(
    ("text", "rates"),
    [("1e-4", [1e-4]), ("1e-3,1e-4", [1e-3, 1e-4]), ("1e-4:1e-4:1", [1e-4]), ("1e-5:1e-3:3", [1e-5, 1e-4, 1e-3])],
)
def test_rates_are_a_list_or_a_geometric_series(text, rates):
    assert numbers(text) == rates


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "0", "-1e-4", "nan", "inf", "1e400", "1e-4,1e-4", "1.2341e-4,1.2342e-4", "1e-4,", "1:2", "1:2:3:4"),
        *(
            "1e-6:1e-3:0",
            "1e-6:1e-3:-2",
            "0:1:3",
            "-1:1:3",
            "1:-1:3",
            "1e-3:1e-3:2",
            "1e-4:1.001e-4:9",
            "1:2:10000000000",
        ),
    ],
)
def test_rates_that_are_no_different_positive_numbers_are_refused(text):
    with pytest.raises(UserError, match="--rates is "):
        numbers(text)


def test_tuning_seeds_are_different_whole_numbers():
    assert seeds_of("100,101") == [100, 101]
    for text in ("", "1.5", "a", "100,100"):
        with pytest.raises(UserError, match="--seeds is "):
            seeds_of(text)


def test_a_pattern_names_the_methods_that_match():
    assert methods_of("algorithm=glob(grpo_p*)") == ["grpo_pairs", "grpo_process"]
    assert set(methods_of("algorithm=glob(*)")) > {"ppo", "grpo"}
    assert methods_of("algorithm=mine,grpo") == ["mine", "grpo"]
    with pytest.raises(UserError, match="matches no method"):
        methods_of("algorithm=glob(zz*)")


def test_a_variant_is_one_method():
    assert parse(["algorithm=grpo", "--variant", "mine"]).methods == ["grpo"]
    for several in ("algorithm=ppo,grpo", "algorithm=glob(grpo*)"):
        with pytest.raises(UserError, match="--variant is 'mine', the name of one method's file"):
            parse([several, "--variant", "mine"])


@pytest.mark.parametrize("where", ["seed", "1", "name", "'x'", "seed + 1", "nothing == 1", "seed ==", "[True]"])
def test_an_expression_that_is_not_true_or_false_for_each_run_is_refused(where):
    runs = pd.DataFrame({"seed": [1, 1, 2], "name": ["a", "b", "a"], "status": "FINISHED"})
    assert list(select(runs, "seed == 1 and name != 'b'")["name"]) == ["a"]
    with pytest.raises(UserError, match=f"where is '{where.replace('+', '.').replace('[', '.')}"):
        select(runs, where)
