"""Sweeps, reports, help and errors, as a user meets them."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from hydra.core.global_hydra import GlobalHydra
from mlflow import MlflowClient

from bakeoff.__main__ import main
from bakeoff.paths import CONF
from bakeoff.report.comparisons import family
from bakeoff.report.statistics import detectable
from bakeoff.report.store import load_study
from tests.commands import store_of
from tests.stored import tracking

SHORT = [
    *("batch.prompts=4", "batch.group_size=4", "sft.steps=3", "task.heldout=16", "evaluation.every=2"),
    *("evaluation.final=0", "sft.accuracy=0"),  # whose measurements take longer than the steps
    "++model.architecture.num_hidden_layers=1",
]


def runs_in(folder: Path):
    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    return client, client.search_runs([client.get_experiment_by_name("bakeoff").experiment_id])


def test_a_sweep_its_report_and_the_seeds_that_a_difference_takes(command, report, tmp_path):
    """Two seeds are there and three are needed: the printed command runs one more of each arm, in the same sweep."""
    arguments = [*SHORT, "task.digits=3", "task.max_new_tokens=4", "task.heldout=64"]
    arguments += ["sft.steps=120", "budget={unit: updates, limit: 6}", "hydra/launcher=basic"]
    ran = command("sweeps=methods", "algorithm=ppo,grpo", "seed=1,2", *arguments)
    assert ran.returncode == 0, ran.stderr
    assert "4 jobs" in ran.stdout
    client, runs = runs_in(tmp_path)
    (parent,) = [run for run in runs if run.data.tags.get("kind") == "sweep"]
    children = [run for run in runs if run is not parent]
    assert len(children) == 4
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.info.status for run in runs} == {"FINISHED"}
    starts = {(run.data.tags["seed"], run.data.tags["start"]) for run in children}
    assert len(starts) == 2, "the methods start from the same weights, which the seed draws"
    assert {run.data.tags["arm"] for run in children} == {"ppo", "grpo"}
    assert len({run.data.tags["config_id"] for run in children}) == 2

    found = family(load_study("methods", tracking(tmp_path)))
    said = report("methods", "--detect", str(detectable(found.deviation, 3, step=found.step) * 1.01))
    assert "needs 3 seeds per arm" in said.stdout, said.stderr
    assert not (tmp_path / "reports").exists(), "it only says so"
    typed = shlex.split(said.stdout.split("type: bakeoff ")[1])
    assert "seed=3" in typed
    more = command(*typed)
    assert more.returncode == 0, more.stderr
    assert "2 jobs" in more.stdout
    assert len(runs_in(tmp_path)[1]) == 7, "the sweep and its jobs, none of which ran twice"
    assert report("methods", "--detect", "2").returncode == 2

    reported = report("methods")
    assert reported.returncode == 0, reported.stderr
    assert "held-out greedy" in reported.stdout
    page = (tmp_path / "reports" / "methods.html").read_text()
    assert page.count("image/svg+xml") >= 8
    assert "Traceback" not in page
    assert 'src="http' not in page, "the page needs nothing beside it"
    assert [f.path for f in client.list_artifacts(parent.info.run_id, "report")] == [
        "report/methods",
        "report/methods.html",
        "report/methods.md",
    ]
    folder = tmp_path / "reports" / "methods"
    metrics = pd.read_parquet(folder / "metrics.parquet")
    assert set(metrics["name"]) == {"ppo", "grpo"}
    assert sorted(pd.read_csv(folder / "runs.csv")["seed"]) == [1, 1, 2, 2, 3, 3]
    names = sorted(path.name for path in folder.iterdir())
    assert "01_final_held_out_accuracy.svg" in names
    assert "01_final_held_out_accuracy.png" in names


def test_a_failing_job_stops_no_other_and_the_repeated_sweep_runs_it_alone(command, tmp_path):
    (tmp_path / "bad.py").write_text(
        "import os\ndef f(completions, **_):\n    if not os.path.exists('ready'):\n        raise OSError('no judge')\n"
        "    return [0.0] * len(completions)\n"
    )
    choices = "+reward.functions={bad.f: 1},{verifier: 2}"
    few = ["budget={unit: updates, limit: 1}", "checkpoint.every=0", "hydra/launcher=basic", "hydra.sweep.dir=sweep"]
    arguments = ["--multirun", choices, *SHORT, *few, "algorithm=grpo"]
    ran = command(*arguments)
    assert ran.returncode == 2
    assert "Traceback" not in ran.stderr
    assert "raised OSError: no judge" in ran.stderr
    assert "1 of 2 jobs did not finish" in ran.stderr
    assert ran.stderr.count("to finish them, type: bakeoff --multirun") == 1
    _, runs = runs_in(tmp_path)
    children = {run.data.params["reward.functions.verifier"]: run for run in runs if run.data.params}
    assert sorted(run.info.status for run in runs) == ["FAILED", "FAILED", "FINISHED"], "job, sweep, job"
    assert children["2.0"].info.status == "FINISHED"
    (tmp_path / "ready").touch()
    again = command(*arguments)
    assert again.returncode == 0, again.stderr
    assert "1 of 2 jobs are done already" in again.stdout
    jobs = [run for run in runs_in(tmp_path)[1] if run.data.tags.get("kind") != "sweep"]
    assert [run.info.status for run in jobs] == ["FINISHED", "FINISHED"], "the job continued as the run that failed"
    assert {run.info.run_id for run in jobs} == {run.info.run_id for run in children.values()}
    assert len({run.data.tags["mlflow.parentRunId"] for run in jobs}) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["algoritm=ppo"], ["unknown key algoritm", "did you mean algorithm?"]),
        (["algorithm=gppo"], ["unknown choice algorithm=gppo; valid choices are", "did you mean algorithm=ppo?"]),
        (["algorithm.optimizer.lrr=1"], ["unknown key algorithm.optimizer.lrr; valid keys are", "epochs", "mizer.lr?"]),
        (["group_size=4"], ["unknown key group_size", "did you mean batch.group_size?"]),
        (["bacth.prompts=4"], ["unknown key bacth", "did you mean batch.prompts?"]),
        (["+batch.promts=4"], ["unknown key batch.promts; valid keys are prompts, group_size; did you mean batch.pr"]),
        (["algorithm/objectiv=clip"], ["did you mean algorithm/objective?"]),
        (["hydra/lancher=joblib"], ["did you mean hydra/launcher?"]),
        (["budget.unit=update"], ["budget.unit: Invalid value 'update'", "did you mean updates?"]),
        (["grpo"], ["'grpo' does not have the form KEY=VALUE; did you mean algorithm=grpo?"]),
        (["seed=1", "--mutlirun"], ["unknown option --mutlirun; did you mean --multirun?"]),
        (["algorithm=grpo", "-m", "algorithm.optimizer.lrr=1,2"], ["did you mean algorithm.optimizer.lr?"]),
        (["protocol=sort_tin"], ["unknown choice protocol=sort_tin", "did you mean protocol=sort_tiny?"]),
        (["task.digits=ten"], ["ten", "task.digits"]),
        (["sweeps=typo"], ["unknown choice sweeps=typo; valid choices are", "methods"]),
        (["sweeps=critic", "arm=typo"], ["unknown arm typo; valid arms are critic_none"]),
        (["sweeps=critic", "arm=critic_non"], ["did you mean critic_none?"]),
        (["arm=critic_none"], ["unknown arm critic_none; arms belong to a study, which sweeps=NAME chooses"]),
        (["sweeps=critic", "arm=critic_none", "hydra.mode=RUN"], ["arm=critic_none needs a sweep"]),
        (["tuned=sort_tiny/typo"], ["unknown choice tuned=sort_tiny/typo"]),
        (["sweeps=methods", "tuned=sort_tiny/typo"], ["unknown choice tuned=sort_tiny/typo"]),
        (["-m", "seed=interval(1,2)"], ["seed=interval(1,2) is an interval"]),
        (["batch.group_size=1"], ["batch.group_size is 1", "at least 2"]),
        (["algorithm.optimizer.minibatches=999"], ["algorithm.optimizer.minibatches is 999", "at most"]),
        (["model=hf", "model.name=/no/such/model"], ["model.name is '/no/such/model'"]),
        (["model=hf"], ["model.name"]),
        (["algorithm/kl_to_reference=none"], ["the tuned values set algorithm.kl_to_reference.beta", "tuned=none"]),
        (["sweeps=methods", "algorithm=grpo,nope"], ["unknown choice algorithm=nope"]),
        (["tracking.uri=sqlite:////proc/no/mlflow.db", *SHORT], ["tracking.uri", "cannot be written"]),
        (["reward=function", "+reward.functions={no.such: 1}"], ["reward.functions names 'no.such'"]),
        (["sweeps=methods", "algorithm.optimizer.minibatches=999"], ["algorithm.optimizer.minibatches is 999"]),
        (["+unknown.key=1"], ["unknown key unknown; valid keys are task"]),
        (["+resume=out"], ["unknown key resume"]),
        (["++task.unknown=1"], ["unknown key task.unknown"]),
        (["+algorithm.objective.x=1"], ["unknown key algorithm.objective.x; valid keys are epsilon"]),
        (["-m", "seed=1,2", "hydra.sweep.subdir=x"], ["hydra.sweep.subdir is set"]),
        (["resume="], ["resume is ''"]),
        (["resume=/no/such/run"], ["resume is '/no/such/run'"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_a_users_mistake_gets_one_sentence(arguments, words, monkeypatch, capsys, tmp_path):
    """In this process, which has imported everything already: the same `main` that the command calls."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bakeoff", *arguments])
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as ended:
        main()
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert ended.value.code == 2
    assert len(lines) == 1, lines
    assert lines[0].startswith("bakeoff: ")
    for word in words:
        assert word in lines[0]


def test_a_mistake_ends_the_command_with_one_sentence(tmp_path):
    """By an interpreter of its own, with nothing imported before."""
    arguments = [sys.executable, "-m", "bakeoff", "batch.group_size=1"]
    result = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("bakeoff: batch.group_size is 1")
    assert result.stderr.count("\n") == 1


def test_a_sweep_takes_more_seeds_and_methods_and_refuses_other_values(command, tmp_path, monkeypatch):
    limit, launcher = "budget={unit: updates, limit: 1}", ["checkpoint.every=0", "hydra/launcher=basic"]
    common = ["-m", *SHORT, *launcher, "hydra.sweep.dir=sweep"]

    def finished(folder=tmp_path):
        _, runs = runs_in(folder)
        return sorted(
            (run.data.tags["algorithm"], run.data.tags["seed"])
            for run in runs
            if run.data.tags.get("kind") != "sweep" and run.info.status == "FINISHED"
        )

    assert command(*common, limit, "algorithm=grpo", "seed=2").returncode == 0
    more = command(*common, limit, "algorithm=glob([grpo,rloo*])", "seed=1,2")
    assert more.returncode == 0, more.stderr
    assert "1 of 4 jobs are done already" in more.stdout
    assert finished() == [("grpo", "1"), ("grpo", "2"), ("rloo", "1"), ("rloo", "2")]
    (sweep,) = [run for run in runs_in(tmp_path)[1] if run.data.tags.get("kind") == "sweep"]
    launches = [line.split() for line in sweep.data.tags["command"].splitlines()]
    assert [("algorithm=grpo" in words, "seed=2" in words) for words in launches] == [(True, True), (False, False)]
    reports = {path: path.read_bytes() for path in (tmp_path / "sweep").rglob("*.json")}
    for other in (
        ["algorithm=remax", "seed=1", "budget={unit: updates, limit: 2}"],
        ["algorithm=grpo", "seed=3", limit, "algorithm.optimizer.lr=1"],
        ["algorithm=grpo", "seed=3", limit, "sft.steps=4"],
    ):
        refused = command(*common, *other)
        assert refused.returncode == 2
        assert "'sweep' holds another sweep" in refused.stderr
        assert {path: path.read_bytes() for path in reports} == reports
    (other := tmp_path / "other").mkdir()
    store_of(other)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{other / 'mlflow.db'}")
    anew = command(*common, limit, "algorithm=grpo", "seed=2,1")
    assert "does not hold this run" in anew.stdout, anew.stderr
    assert finished(other) == [("grpo", "1"), ("grpo", "2")]


def test_a_report_on_an_empty_store_says_what_fills_it(report):
    result = report("methods")
    assert result.returncode == 2
    assert "bakeoff sweeps=methods" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_report_on_an_unknown_study_lists_what_there_is(report):
    result = report("no_such")
    assert result.returncode == 2
    assert "all_methods" in result.stderr
    assert "methods, mismatch, model_size" in result.stderr


def test_the_reward_models_stage_alone(command, tmp_path):
    few = ["preferences.pairs=32", "preferences.heldout=16", "preferences.steps=3", "sft={steps: 3, accuracy: 0}"]
    ran = command(*few, module="bakeoff.reward_model")
    assert ran.returncode == 0, ran.stderr
    assert "of 16 held-out pairs right" in ran.stdout
    _, (run,) = runs_in(tmp_path)
    assert run.info.status == "FINISHED"
    assert 0 <= run.data.metrics["reward_model/heldout_pair_accuracy"] <= 1
    assert run.data.params["preferences.pairs"] == "32"
    refused = command("preferences.label_noise=2", module="bakeoff.reward_model")
    assert refused.returncode == 2
    assert refused.stderr.startswith("bakeoff-reward-model: preferences.label_noise is 2")


def test_the_rlhf_study_and_its_report(command, report, tmp_path):
    """The four models from preferences to the over-optimisation report, in small."""
    few = ["preferences.pairs=32", "preferences.heldout=16", "preferences.steps=3"]
    short = [*SHORT, *few, "budget={unit: updates, limit: 2}", "hydra/launcher=basic"]
    ran = command("sweeps=rlhf", "seed=1,2", *short)
    assert ran.returncode == 0, ran.stderr
    _, runs = runs_in(tmp_path)
    children = [run for run in runs if run.data.tags.get("kind") != "sweep"]
    assert len(children) == 6
    for run in children:
        assert {"reward/true", "reward/term_learned", "memory/weights_reward_model_mb"} <= set(run.data.metrics)
        assert run.data.metrics["memory/weights_reward_model_mb"] > 0
    reported = report("rlhf")
    assert reported.returncode == 0, reported.stderr
    page = (tmp_path / "reports" / "rlhf.html").read_text()
    assert page.count("image/svg+xml") >= 4
    assert "below its best" in page


def test_optuna_searches_a_rate(command, tmp_path):
    """Two trials of one method: each is a job with a rate of its own, below one parent."""
    few = [*SHORT, "budget={unit: updates, limit: 1}", "hydra.sweeper.search.n_trials=2", "hydra/launcher=basic"]
    ran = command("sweeps=tuning", "algorithm=grpo", *few)
    assert ran.returncode == 0, ran.stderr
    assert "2 jobs" in ran.stdout
    lines = [line for line in ran.stdout.splitlines() if ": done" in line]
    assert [" lr=" in line and len(line) <= 80 for line in lines] == [True, True], (
        "a line shows the rate that was tried"
    )
    _, runs = runs_in(tmp_path)
    children = [run for run in runs if run.data.tags.get("kind") != "sweep"]
    rates = [float(run.data.params["algorithm.optimizer.lr"]) for run in children]
    assert len(set(rates)) == 2
    assert all(1e-4 <= rate <= 2e-3 for rate in rates)
    (parent,) = [run for run in runs if run.data.tags.get("kind") == "sweep"]
    assert (parent.data.tags["study"], parent.info.status) == ("tuning", "FINISHED")
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}


SMALL = ["mode=predict", "batch.prompts=4", "task.heldout=4", "sft.steps=0", "++model.architecture.num_hidden_layers=1"]
FEW = [*SMALL, "model=tiny", "task=sort", "batch.group_size=2", "hydra/launcher=basic"]


def test_a_run_carries_its_arm_and_how_its_values_were_tuned(command, tmp_path):
    """The overrides of an arm are not among the settings by which a report names it."""
    ran = command("sweeps=critic", "arm=critic_none,grpo_lora", "seed=1", *FEW)
    assert ran.returncode == 0, ran.stderr
    assert "grpo_lora seed 1: done" in ran.stdout
    _, runs = runs_in(tmp_path)
    one, other = sorted((run.data for run in runs if run.data.params), key=lambda data: data.tags["arm"])
    assert (one.tags["arm"], one.tags["algorithm"], one.tags["tuned"]) == ("critic_none", "grpo", "sort_tiny/grpo")
    assert (other.tags["arm"], other.tags["algorithm"]) == ("grpo_lora", "grpo")
    assert other.tags["tuned"] == "sort_tiny/grpo_lora"
    assert one.tags["study"] == "critic"
    settings = json.loads(other.tags["overrides"])
    assert {"arm=grpo_lora", "seed=1", "sweeps=critic"} <= set(settings)
    assert not {"algorithm=grpo", "model.lora.rank=16"} & set(settings)
    assert other.params["model.lora.rank"] == "16"
    assert other.params["choice/arm"] == "grpo_lora"
    assert (other.params["tuned.trials"], other.params["tuned.seeds"]) == ("3", "[100]")


MINE = """# @package _global_
study: {question: "Is it mine?"}
hydra:
  mode: MULTIRUN
  sweeper:
    arms:
      one: [algorithm=my_method]
      two: [algorithm=my_method, batch.group_size=4]
    params: {seed: 1}
"""


def own_study(folder: Path) -> Path:
    """A user's folder with a study, its page and a method of theirs."""
    for name in ("sweeps", "pages", "conf/algorithm"):
        (folder / name).mkdir(parents=True)
    (folder / "sweeps" / "mine.yaml").write_text(MINE)
    (folder / "pages" / "mine.py").write_text("from bakeoff.report.pages.methods import table, verdict")
    (folder / "conf" / "algorithm" / "my_method.yaml").write_text((CONF / "algorithm" / "rloo.yaml").read_text())
    return folder


@pytest.mark.parametrize("how", ["working folder", "variable", "--config-dir"])
def test_a_study_and_a_method_of_the_user_run_from_their_own_folder(how, command, tmp_path, monkeypatch):
    folder = own_study(tmp_path if how == "working folder" else tmp_path / "elsewhere")
    if how == "variable":
        monkeypatch.setenv("BAKEOFF_STUDIES", str(folder))
    arguments = ["--config-dir", str(folder)] if how == "--config-dir" else []
    ran = command(*arguments, "sweeps=mine", *SMALL, "hydra/launcher=basic")
    assert ran.returncode == 0, ran.stderr
    _, runs = runs_in(tmp_path)
    assert {run.data.tags["study"] for run in runs} == {"mine"}
    jobs = [run.data.tags for run in runs if run.data.params]
    assert {(tags["arm"], tags["algorithm"]) for tags in jobs} == {("one", "my_method"), ("two", "my_method")}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda folder: (folder / "sweeps" / "mine.yaml").rename(folder / "sweeps" / "methods.yaml"),
            ["two studies share a file name", "rename yours"],
        ),
        (lambda folder: (folder / "sweeps" / "mine.yaml").write_text("study: {"), ["not valid YAML", "mine.yaml"]),
    ],
    ids=["a name that is taken", "not YAML"],
)
def test_a_mistake_in_a_users_study_gets_one_sentence(change, words, monkeypatch, capsys, tmp_path):
    change(own_study(tmp_path))
    name = next((tmp_path / "sweeps").glob("*.yaml")).stem
    test_a_users_mistake_gets_one_sentence([f"sweeps={name}"], words, monkeypatch, capsys, tmp_path)


def test_a_study_of_gradients_is_a_sweep(command, tmp_path):
    few = ["quality.batches=2", "quality.reference_batches=3", "batch.prompts=4", "task.heldout=4", "sft.steps=0"]
    ran = command("sweeps=gradient_quality", "algorithm=grpo,rloo", "seed=1", "hydra/launcher=basic", *few)
    assert ran.returncode == 0, ran.stderr
    _, runs = runs_in(tmp_path)
    children = [run for run in runs if run.data.tags.get("kind") == "gradient_quality"]
    assert len(children) == 2
    assert all({"gradient/cosine", "gradient/snr_per_second"} <= set(run.data.metrics) for run in children)


def test_a_sweep_and_its_jobs_go_on_with_a_larger_budget(command, tmp_path):
    """In their MLflow runs, from their checkpoints; a change that is refused leaves a job's folder as it was."""
    short = ["-m", *SHORT, "algorithm=ppo,grpo", "seed=1", "checkpoint.every=1", "hydra.sweep.dir=sweep"]
    assert command(*short, "budget={unit: updates, limit: 1}").returncode == 0
    first = {run.info.run_id for run in runs_in(tmp_path)[1]}
    longer = command(*short, "budget={unit: updates, limit: 2}")
    assert longer.returncode == 0, longer.stderr
    _, runs = runs_in(tmp_path)
    assert {run.info.run_id for run in runs} == first
    assert {run.data.tags.get("changed.budget.limit") for run in runs if "algorithm" in run.data.tags} == {"2.0"}
    assert command("resume=sweep/1", "budget.limit=3").returncode == 0
    files = {path: path.read_bytes() for path in (tmp_path / "sweep" / "1").rglob("*") if path.is_file()}
    refused = command("resume=sweep/1", "budget.limit=4", "evaluation.final=8")
    assert "evaluation.final" in refused.stderr
    assert {path: path.read_bytes() for path in files} == files
    assert "resume=sweep/0 resumes one" in command("resume=sweep").stderr
