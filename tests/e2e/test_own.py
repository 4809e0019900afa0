"""A question of a user's, in a folder outside the checkout: every step is a command that the project's README names."""

import os
import subprocess
import sys

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from bakeoff.init import main as init
from bakeoff.paths import ANALYSIS
from bakeoff.tune import main as tune
from tests.commands import call

pytestmark = pytest.mark.xdist_group("own")  # one worker, so that the project is shared
TOY = ("model=toy", "task=my_task")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with a finished study of two methods, whose jobs run two at a time: per_gpu, where there is no GPU."""
    folder = tmp_path_factory.mktemp("own") / "project"
    assert call("bakeoff.init", (str(folder),), folder.parent).returncode == 0
    study = ("sweeps=my_study", "model=toy", "seed=1", "hydra/launcher=per_gpu", "hydra.sweep.dir=sweep")
    ran = call("bakeoff.__main__", study, folder)
    assert ran.returncode == 0, ran.stderr
    assert "bakeoff-report my_study" in ran.stdout
    assert sorted(path.parent.name for path in (folder / "sweep").glob("*/run.json")) == ["0", "1"]
    return folder


def test_the_project_is_short_and_nothing_in_it_is_replaced(project, monkeypatch, capsys):
    assert len((project / "data" / "problems.jsonl").read_text().splitlines()) == 200
    assert len((project / "README.md").read_text().splitlines()) <= 12
    assert "reports/my_study" in (project / "analysis" / "my_study.ipynb").read_text()
    assert (ANALYSIS / "methods.ipynb").is_file()
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    monkeypatch.setattr(sys, "argv", ["bakeoff-init", str(project)])
    with pytest.raises(SystemExit):
        init()
    assert "README.md" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("folder", ["file", "file/below"])
def test_a_file_is_no_place_for_a_project(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(sys, "argv", ["bakeoff-init", str(tmp_path / folder)])
    with pytest.raises(SystemExit):
        init()
    assert "is a file, or below one" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("seeds", ["a,b", "", "1.5"])
def test_tuning_seeds_are_whole_numbers(seeds, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bakeoff-tune", "algorithm=grpo", f"--seeds={seeds}"])
    with pytest.raises(SystemExit):
        tune()
    assert "it must be whole numbers" in capsys.readouterr().err


def test_its_study_has_a_page_without_code_of_its_own(project, report, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project / 'mlflow.db'}")
    listed = report()
    assert "bakeoff-report my_study" in listed.stdout, listed.stderr
    assert report("no_such").returncode == 2
    # from another folder, which holds no file of the study: the store is enough
    made = report("--latest")
    assert made.returncode == 0, made.stderr
    assert "my_study.html" in made.stdout


def test_its_page_has_a_notebook_and_its_claim_is_tested(project, report, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project / 'mlflow.db'}")
    for what in ("my_study", "claims"):
        made = report(what, "--config-dir", str(project))
        assert made.returncode == 0, made.stderr
    assert "my_study.ipynb" in (tmp_path / "reports" / "my_study.html").read_text()
    assert "PPO solves more of my problems than GRPO" in (tmp_path / "reports" / "claims.md").read_text()


def test_a_report_without_a_store_makes_none_and_says_where_it_looked(report, tmp_path):
    for arguments in ((), ("--latest",), ("methods",), ("--all",)):
        refused = report(*arguments)
        assert refused.returncode == 2
        assert str(tmp_path / "mlflow.db") in refused.stderr
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["sweep/0", "sweep/0/actor"])
def test_what_a_run_leaves_is_scored(project, what):
    scored = call("bakeoff.evaluate", (what, "--samples", "4"), project)
    assert scored.returncode == 0, scored.stderr
    assert all(word in scored.stdout for word in ("16 held-out prompts", "greedy", "sampled", "pass@4"))


def test_a_checkpoint_and_an_adapter_are_scored_and_open_in_transformers(project):
    small = (*TOY, "algorithm=grpo", "model.lora.rank=2", "checkpoint={every: 1, adapter: true}", "hydra.run.dir=lora")
    ran = call("bakeoff.__main__", (*small, "sft.steps=1", "sft.batch=2"), project)
    assert ran.returncode == 0, ran.stderr
    for what in ("lora/actor", "lora/checkpoints/update_000001"):
        scored = call("bakeoff.evaluate", (what, "--samples", "2"), project)
        assert scored.returncode == 0, scored.stderr
    assert (project / "lora" / "actor" / "adapter_config.json").is_file()
    assert AutoModelForCausalLM.from_pretrained(project / "lora" / "actor").num_parameters()
    assert AutoTokenizer.from_pretrained(project / "lora" / "actor")("1 + 1")["input_ids"]


def test_rates_are_tuned_with_equal_trials_and_then_used(project):
    easy = ["task.digits=2", "task.max_new_tokens=3", "task.heldout=8", "sft={steps: 60, batch: 32, accuracy: 0}"]
    short = [*easy, "batch={prompts: 4, group_size: 4}", "budget={unit: updates, limit: 1}"]
    one_by_one = "hydra/launcher=basic"
    search = ("algorithm=ppo,grpo", *short, one_by_one, "--rates", "1e-4,1e-3", "--seeds", "100,101")
    refused = call("bakeoff.tune", search, project)
    assert "the package already has tuned values sort_tiny/ppo" in refused.stderr
    tuned = call("bakeoff.tune", (*search, "--name", "mine"), project)
    assert tuned.returncode == 0, tuned.stderr
    methods = ("ppo", "grpo")
    files = [yaml.safe_load((project / "conf" / "tuned" / "mine" / f"{each}.yaml").read_text()) for each in methods]
    for file in files:
        record = file["tuned"]
        assert (record["trials"], record["seeds"], len(record["accuracies"])) == (4, [100, 101], 2)
        assert record["command"].startswith("bakeoff-tune algorithm=ppo,grpo")
        assert all(record[key] for key in ("date", "commit", "task"))
        assert file["algorithm"]["optimizer"]["lr"] in (1e-4, 1e-3)
    ran = call("bakeoff.__main__", ("algorithm=grpo", *short, "tuned=mine/grpo"), project)
    assert "tuned values of mine/grpo" in ran.stdout, ran.stderr
    # a search whose base is the file that it wrote is the same search, and goes on
    again = call("bakeoff.tune", ("algorithm=grpo", *search[1:], "--name", "mine", "--base", "mine"), project)
    assert again.returncode == 0, again.stderr
    assert len(list((project / "outputs" / "tuning" / "mine" / "grpo").iterdir())) == 1
    # a variant keeps the values of its method's file, and the keys that make it one
    once = (*short, one_by_one, "--rates", "2e-4", "--seeds", "100", "--name", "mine", "--base", "mine")
    tuned = call(
        "bakeoff.tune", ("algorithm=grpo", "algorithm.optimizer.epochs=3", *once, "--variant", "thrice"), project
    )
    assert tuned.returncode == 0, tuned.stderr
    file = yaml.safe_load((project / "conf" / "tuned" / "mine" / "thrice.yaml").read_text())
    assert (file["tuned"]["name"], file["tuned"]["trials"]) == ("mine/thrice", 1)
    assert (file["algorithm"]["optimizer"]["epochs"], file["algorithm"]["optimizer"]["lr"]) == (3, 2e-4)


OPTION = '''
from dataclasses import dataclass

from bakeoff.algorithm import AXES
from bakeoff.algorithm.objective import RatioObjective


@dataclass
class Mine(RatioObjective):
    """My own objective."""


AXES["objective"]["mine"] = Mine()
'''


def bare(folder, *arguments, **environment):
    """`bakeoff` in a process of its own, which imports what the environment says."""
    command = [sys.executable, "-m", "bakeoff", *arguments]
    return subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=300
    )


def test_an_option_of_the_users_is_imported_from_the_working_folder(tmp_path):
    (tmp_path / "my_objective.py").write_text(OPTION)
    chosen = ["--cfg", "job", "-p", "algorithm.objective", "algorithm/objective=mine"]
    there = bare(tmp_path, *chosen, BAKEOFF_IMPORT="my_objective")
    assert there.returncode == 0, there.stderr
    missing = bare(tmp_path, *chosen, BAKEOFF_IMPORT="my_objectives")
    assert (missing.returncode, len(missing.stderr.splitlines())) == (2, 1)
    assert "$BAKEOFF_IMPORT names 'my_objectives', which cannot be imported" in missing.stderr


def test_a_file_of_the_users_with_a_name_of_ours_is_refused(tmp_path):
    (tmp_path / "conf" / "algorithm").mkdir(parents=True)
    (tmp_path / "conf" / "algorithm" / "grpo.yaml").write_text("defaults: [{objective: ratio}]\n")
    refused = bare(tmp_path, "algorithm=grpo")
    assert refused.returncode == 2
    assert "grpo.yaml' has the name of a file of bakeoff, which is read in its place; rename yours." in refused.stderr
