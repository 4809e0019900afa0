"""Studies: every shipped file can run, an arm is a name for overrides, tuned values say how they were chosen."""

import datetime
import functools
import os
import re

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from bakeoff.arms import Job, arms_of, grid, job_name, job_names, settings_of
from bakeoff.config import Tuned, searchpath
from bakeoff.errors import UserError
from bakeoff.identity import config_id
from bakeoff.paths import CONF, ROOT, SWEEPS, page_file, study_file, study_folders, study_names
from bakeoff.report.page import page_of
from bakeoff.tune import file_values
from tests.conftest import compose

pytestmark = pytest.mark.xdist_group("studies")  # one worker, so that each study is composed once
STUDIES = sorted(path.stem for path in SWEEPS.glob("*.yaml") if path.stem != "none")
METHODS = sorted(path.stem for path in (CONF / "algorithm").glob("*.yaml"))
TUNED = sorted((CONF / "tuned").glob("*/*.yaml"))
PAIRED = ("grpo_pairs", "grpo")


@functools.cache
def study(name):
    """The configuration of a study, with Hydra's own."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("config", overrides=[f"sweeps={name}"], return_hydra_config=True)


def jobs(sweeper, *arguments):
    """The jobs of a sweeper's configuration, and of a command line's overrides."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return grid(sweeper, list(arguments), GlobalHydra.instance().config_loader())


def sweeper(arms=None, **params):
    return OmegaConf.create({"arms": arms or {}, "params": params})


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_asks_a_question_has_a_page_and_jobs_that_can_run(name):
    config = study(name)
    assert config.study.question.endswith("?")
    page = page_of(name)
    called = re.findall(r"page\.code\.(\w+)", page.notebook.read_text())
    assert [function for function in called if not callable(getattr(page.code, function, None))] == []
    if config.hydra.sweeper.search:
        assert config.hydra.sweeper.search.n_trials >= 8
        compose(f"sweeps={name}")
        return
    every = jobs(config.hydra.sweeper, f"sweeps={name}")
    assert len(every) >= 8
    for job in (every[0], every[-1]):
        assert compose(*job.overrides).arm == next((s[4:] for s in job.settings if s.startswith("arm=")), "")


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="one process runs all tests")
def test_a_group_of_tests_is_run_by_one_worker(request):
    assert request.node.nodeid.endswith("@studies"), "which tells the scheduler"


def test_an_arm_has_the_same_overrides_in_every_study():
    seen = {}
    for name in STUDIES:
        for arm, overrides in arms_of(study(name).hydra.sweeper).items():
            assert seen.setdefault(arm, overrides) == overrides, f"{arm} of {name}"


@pytest.mark.parametrize("name", STUDIES)
def test_no_seed_is_both_tuned_on_and_reported(name):
    config = study(name)
    if name == "tuning":
        assert [config.seed] == config.study.tuning_seeds
    elif "seed" in config.hydra.sweeper.params:
        reported = {int(seed) for seed in config.hydra.sweeper.params.seed.split(",")}
        assert not reported & set(config.study.tuning_seeds)


def test_the_league_holds_every_method():
    every = jobs(study("all_methods").hydra.sweeper)
    assert {setting for job in every for setting in job.settings if setting.startswith("algorithm=")} == {
        f"algorithm={method}" for method in METHODS
    }


def test_every_arm_runs_with_every_combination_of_the_swept_values():
    two = sweeper({"a": ["algorithm=ppo"], "b": ["algorithm=grpo", "batch.prompts=8"]}, seed="1,2")
    assert [job.settings for job in jobs(two, "sft.steps=3")] == [
        [f"arm={arm}", f"seed={seed}", "sft.steps=3"] for arm in "ab" for seed in (1, 2)
    ]
    assert jobs(two)[-1].overrides == ["arm=b", "seed=2", "algorithm=grpo", "batch.prompts=8"]


def test_the_command_line_selects_arms_and_sets_other_values():
    two = sweeper({"a": ["algorithm=ppo"], "b": ["algorithm=grpo"]}, seed="1,2")
    assert [job.settings for job in jobs(two, "arm=b", "seed=7")] == [["arm=b", "seed=7"]]
    assert [job.settings[0] for job in jobs(two, "arm=b,a", "seed=7")] == ["arm=b", "arm=a"]


def test_the_command_line_comes_before_an_arm_and_an_arm_before_the_study():
    one = sweeper({"a": ["batch.prompts=8", "seed=3"]}, seed="1")
    (job,) = jobs(one, "batch.prompts=4")
    assert job.overrides == ["arm=a", "seed=3", "batch.prompts=4"]


def test_an_arm_may_name_values_by_task_and_model():
    (job,) = jobs(sweeper({"a": ["algorithm=grpo", "tuned=${task}_${model}/grpo_lora"]}), "arm=a")
    assert compose(*job.overrides).tuned.name == "sort_tiny/grpo_lora"
    assert compose(*job.overrides, "task=largest").tuned.name == ""


@pytest.mark.parametrize(
    ("arms", "argument", "sentence"),
    [
        ({"a": [], "b": []}, "arm=c", "unknown arm c; valid arms are a, b."),
        ({}, "arm=c", "unknown arm c; arms belong to a study, which sweeps=NAME chooses."),
        ({}, "seed=interval(1,2)", "seed=interval(1,2) is an interval, which has no grid of values"),
    ],
)
def test_a_job_that_cannot_be_listed_is_refused(arms, argument, sentence):
    with pytest.raises(UserError) as caught:
        jobs(sweeper(arms), argument)
    assert str(caught.value).startswith(sentence)


def test_the_settings_of_a_job_name_its_arm_in_the_place_of_the_arms_overrides():
    arms = {"a": ["algorithm=ppo", "batch.prompts=8"]}
    assert settings_of(["arm=a", "seed=1", "algorithm=ppo", "batch.prompts=8"], arms) == ["arm=a", "seed=1"]
    replaced = ["arm=a", "algorithm=ppo", "batch.prompts=4"]
    assert settings_of(replaced, arms) == ["arm=a", "batch.prompts=4"], "what replaces an arm's value is shown"
    with pytest.raises(UserError, match="arm=a needs a sweep"):
        settings_of(["arm=a"], arms)


def test_a_job_is_named_by_the_settings_in_which_jobs_differ():
    def job(*settings):
        return Job(list(settings), list(settings))

    common = ("sweeps=x", "sft.steps=3")
    assert job_names([job("arm=a", f"seed={s}", "batch.prompts=4", *common) for s in (1, 2)]) == [
        "a seed 1",
        "a seed 2",
    ]
    assert job_names([job("algorithm=ppo", f"lr={v}", *common) for v in (1, 2)]) == ["ppo lr=1", "ppo lr=2"]
    assert job_names([job("algorithm=ppo", *common)] * 2) == ["ppo trial 1", "ppo trial 2"]
    assert job_name(["algorithm=ppo", "seed=1", "++a.b=2"]) == "ppo seed 1 b=2"


def test_neither_an_arms_name_nor_the_record_of_tuning_is_part_of_a_configurations_identity():
    one, other = compose(), compose()
    other.arm, other.tuned = "a", Tuned(name="x", trials=3)
    assert config_id(one) == config_id(other)


@pytest.mark.parametrize("path", TUNED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_tuned_values_say_how_they_were_chosen(path):
    tuned = Tuned(**OmegaConf.load(path).tuned)
    assert tuned.name == f"{path.parent.name}/{path.stem}"
    assert tuned.command.startswith(("bakeoff ", "bakeoff-tune ", "make "))
    assert len(tuned.accuracies) <= tuned.trials
    assert tuned.trials > 0
    assert tuned.seeds
    datetime.date.fromisoformat(tuned.date)


@pytest.mark.parametrize("path", TUNED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_tuned_values_belong_to_a_task_a_model_and_a_method_or_arm_that_exist(path):
    tasks, models = ([file.stem for file in (CONF / group).glob("*.yaml")] for group in ("task", "model"))
    protocols = {file.stem for file in (CONF / "protocol").glob("*.yaml")}
    assert path.parent.name in {f"{task}_{model}" for task in tasks for model in models} | protocols
    assert path.stem in {*METHODS, *(arm for name in STUDIES for arm in arms_of(study(name).hydra.sweeper))}


@pytest.mark.parametrize("protocol", sorted(path.parent.name for path in TUNED if path.stem == "grpo_pairs"))
def test_groups_of_two_have_as_many_completions_as_the_groups_of_others(protocol):
    pairs, others = (compose(f"algorithm={m}", f"protocol={protocol}", f"tuned={protocol}/{m}").batch for m in PAIRED)
    assert pairs.group_size == 2
    assert pairs.prompts * pairs.group_size == others.prompts * others.group_size


def test_a_search_keeps_what_the_base_sets_beside_the_method_and_what_was_typed_in_its_place():
    base = CONF / "tuned" / "sort_tiny" / "grpo_pairs.yaml"
    kept = file_values(base, ["batch.prompts=64", "evaluation.final=1024", "algorithm.optimizer.epochs=2"])
    assert kept.batch == {"prompts": 64, "group_size": 2}
    assert set(kept) == {"batch", "algorithm"}
    assert kept.algorithm.optimizer.epochs == 2
    assert kept.algorithm.optimizer.minibatches == 4


def test_a_configuration_carries_the_record_of_its_tuned_values():
    assert compose("algorithm=ppo_kl").tuned.trials == 36
    assert compose("algorithm=ppo_kl", "tuned=none").tuned == Tuned()


def test_the_users_folder_is_searched_before_the_packages(tmp_path, monkeypatch):
    monkeypatch.delenv("BAKEOFF_STUDIES", raising=False)
    monkeypatch.chdir(tmp_path)
    assert study_folders() == [tmp_path, ROOT]
    assert searchpath() == [f"file://{ROOT}"], "a folder without studies adds nothing"
    for folder in ("conf", "sweeps", "analysis"):
        (tmp_path / folder).mkdir()
    (tmp_path / "sweeps" / "mine.yaml").touch()
    assert searchpath() == [f"file://{tmp_path / 'conf'}", f"file://{tmp_path}", f"file://{ROOT}"]
    assert study_names() == sorted([*STUDIES, "mine"])
    assert study_file("sweeps", "mine.yaml") == tmp_path / "sweeps" / "mine.yaml"
    for kind, name, find in (
        ("sweeps", "methods.yaml", lambda: study_file("sweeps", "methods.yaml")),
        ("analysis", "methods.ipynb", lambda: study_file("analysis", "methods.ipynb")),
        ("pages", "methods.py", lambda: page_file("methods")),
    ):
        assert find().is_file()
        (tmp_path / kind).mkdir(exist_ok=True)
        (tmp_path / kind / name).touch()
        with pytest.raises(UserError, match=f"{kind}/{name}"):
            find()
    monkeypatch.chdir(ROOT)
    assert study_folders() == [ROOT], "in a checkout both are one"
    monkeypatch.setenv("BAKEOFF_STUDIES", str(tmp_path))
    assert study_folders() == [tmp_path, ROOT]
