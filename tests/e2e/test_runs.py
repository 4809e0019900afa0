"""One run, as a user starts it: its tracked data, its saved actor, and its resumption after kill -9."""

import json
import re
import shutil
import signal
import time
from functools import partial

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bakeoff.metrics import DEFINITIONS
from bakeoff.outbox import LOG, SENT
from bakeoff.report import store
from bakeoff.run import train
from tests.commands import call, dies_in_update, start, store_of
from tests.conftest import compose, known, run_of
from tests.stored import client_of, history, named, only_run

SHORT = [
    *("batch.prompts=4", "batch.group_size=4", "sft.steps=3", "task.heldout=16", "evaluation.every=2"),
    *("evaluation.final=0", "sft.accuracy=0"),  # whose measurements take longer than the steps
    "++model.architecture.num_hidden_layers=1",
]
METHODS = ["ppo_kl", "grpo"]  # PPO's metrics and state are part of PPO-KL's
pytestmark = pytest.mark.xdist_group("runs")  # one worker, so that the runs of `finished` are shared


def six_updates(name: str) -> tuple[str, ...]:
    return (f"algorithm={name}", *SHORT, "budget={unit: updates, limit: 6}", "hydra.run.dir=out", "seed=3")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder for each method in which `bakeoff algorithm=…` has run six updates."""
    folders = {}
    for name in METHODS:
        folders[name] = tmp_path_factory.mktemp(name)
        assert call("bakeoff.__main__", six_updates(name), folders[name]).returncode == 0
    return folders


@pytest.mark.parametrize("name", METHODS)
def test_a_run_logs_its_tags_parameters_and_completions(finished, name):
    run = only_run(finished[name])
    assert run.info.status == "FINISHED"
    assert run.data.tags["algorithm"] == name
    assert {"config_id", "start", "seed", "task", "model", "commit", "device", "tuned"} <= set(run.data.tags)
    assert run.data.params["choice/algorithm/kl_to_behaviour"] == ("adaptive_penalty" if name == "ppo_kl" else "none")
    assert run.data.params["batch.group_size"] == "4"
    table = store.completions_frame(client_of(finished[name]), named(run))
    assert table["update"].tolist() == [update for update in (0, 2, 4, 6) for _ in range(8)], "of each evaluation"
    assert table["prompt"].str.fullmatch(r"\d{10}=").all()


def test_metrics_are_the_documented_ones_and_the_same_for_every_method(finished):
    names = {name: set(only_run(folder).data.metrics) for name, folder in finished.items()}
    patterns = [name.replace("*", "") if name.endswith("*") else name for name in DEFINITIONS]
    for found in names.values():
        for metric in found:
            assert any(known(metric, pattern) for pattern in DEFINITIONS), f"{metric} is not documented in {patterns}"
    # a cell of the ledger exists only if it has bytes, and the supervised stage only if the start was not cached
    names = {name: {m for m in found if not re.match(r"memory/(\w+/|sft)", m)} for name, found in names.items()}
    own = re.compile("critic|behaviour_kl")  # a phase of methods that adapt to it
    assert {m for m in names["ppo_kl"] if not own.search(m)} == {m for m in names["grpo"] if not own.search(m)}


@pytest.mark.parametrize("name", METHODS)
def test_six_updates_are_counted_evaluated_every_two_and_begin_on_policy(finished, name, command):
    """At first, ratios are one, nothing is clipped, and the KL to the reference is zero."""
    metrics = history(finished[name])
    assert metrics["progress/sequences"].tolist() == [16.0 * n for n in range(1, 7)]
    assert metrics["eval/greedy_accuracy"].index.tolist() == [0, 2, 4, 6]
    assert metrics["policy/first_ratio_error"].max() < 1e-5
    assert metrics["policy/first_clip_fraction"].max() == 0
    assert metrics["kl/reference_k3_per_token"].iloc[0] == pytest.approx(0, abs=1e-8)


def test_the_saved_actor_opens_in_transformers(finished):
    folder = finished["grpo"] / "out" / "actor"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("4829103758=", return_tensors="pt")["input_ids"]
    assert ids.shape == (1, 11)
    assert torch.isfinite(model(ids).logits).all()


@pytest.mark.parametrize("name", METHODS)
def test_kill_9_then_resume_gives_bit_identical_metrics(finished, name, tmp_path, command):
    arguments = (*six_updates(name), "checkpoint.every=3")
    killed = call("bakeoff.__main__", arguments, tmp_path, partial(dies_in_update, 5))
    assert killed.returncode == -signal.SIGKILL
    assert only_run(tmp_path).info.status == "RUNNING"
    resumed = command("resume=out")
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed after update 3" in resumed.stdout
    assert only_run(tmp_path).info.status == "FINISHED"
    pd.testing.assert_series_equal(history(tmp_path), history(finished[name]), check_exact=True)


def test_a_run_killed_before_its_first_checkpoint_resumes_as_the_same_run(finished, tmp_path):
    """From another working directory, in the store of the run, which was given by a relative address."""
    killed = call(
        "bakeoff.__main__", (*six_updates("grpo"), "checkpoint.every=5"), tmp_path, partial(dies_in_update, 3)
    )
    assert killed.returncode == -signal.SIGKILL
    (elsewhere := tmp_path / "elsewhere").mkdir()
    resumed = call("bakeoff.__main__", (f"resume={tmp_path / 'out'}",), elsewhere)
    assert resumed.returncode == 0, resumed.stderr
    assert only_run(tmp_path).info.status == "FINISHED"
    pd.testing.assert_series_equal(history(tmp_path), history(finished["grpo"]), check_exact=True)


def test_a_finished_run_says_so_and_continues_with_a_larger_budget(tmp_path, command, monkeypatch):
    """What changes is logged, and a report reads the last value; in another store the run has its parameters."""
    few = [*SHORT, "budget={unit: updates, limit: 2}", "hydra.run.dir=out", "tracking.completions_every=1"]
    assert command(*few, "checkpoint.every=1").returncode == 0
    first = only_run(tmp_path)
    again = command("resume=out")
    assert again.returncode == 0
    assert again.stdout.splitlines()[-1] == "the run in out is finished; a larger budget.limit continues it."
    longer = command("resume=out", "budget.limit=3", "evaluation.every=1")
    assert "resumed after update 2" in longer.stdout, longer.stderr
    run = only_run(tmp_path)
    assert (run.info.run_id, run.info.status) == (first.info.run_id, "FINISHED")
    assert (run.data.params["budget.limit"], run.data.tags["changed.budget.limit"]) == ("2.0", "3.0")
    params = store.params_frame([run]).set_index("key")["value"]
    assert (params["budget.limit"], params["evaluation.every"]) == ("3.0", "1")
    assert run.data.tags["config_id"] != first.data.tags["config_id"]
    table = json.loads((tmp_path / "out" / "completions.json").read_text())
    assert [row[0] for row in table["data"]] == [1] * 4 + [2] * 4 + [3] * 4
    assert "is finished" in command("resume=out").stdout

    (other := tmp_path / "other").mkdir()
    store_of(other)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{other / 'mlflow.db'}")
    elsewhere = command("resume=out", "budget.limit=4")
    assert "does not hold this run" in elsewhere.stdout, elsewhere.stderr
    run = only_run(other)
    params = store.params_frame([run]).set_index("key")["value"]
    assert params["budget.limit"] == "4.0"
    files = [file.path for file in client_of(other).list_artifacts(run.info.run_id, "config")]
    assert "config/config.yaml" in files


def test_a_run_that_was_interrupted_while_it_logged_its_configuration_logs_all_of_it(command, tmp_path):
    assert command(*SHORT, "budget={unit: updates, limit: 1}", "hydra.run.dir=out").returncode == 0
    first, out = only_run(tmp_path), tmp_path / "out"
    client_of(tmp_path).delete_run(first.info.run_id)
    (out / LOG).write_text((out / LOG).read_text().splitlines(keepends=True)[0])  # a hundred parameters
    for name in (SENT, "progress.json"):
        (out / name).unlink()
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    again = command("resume=out")
    assert again.returncode == 0, again.stderr
    run = only_run(tmp_path)
    assert set(run.data.params) == set(first.data.params)
    files = [file.path for file in client_of(tmp_path).list_artifacts(run.info.run_id, "config")]
    assert files == ["config/config.yaml", "config/requirements.lock"]


def test_sigterm_ends_the_run_as_killed(tmp_path):
    process = start("bakeoff.__main__", (*SHORT, "budget.limit=1000000", "hydra.run.dir=out"), tmp_path, tmp_path)
    progress = tmp_path / "out" / "progress.json"
    for _ in range(600):
        if progress.is_file() and json.loads(progress.read_text()).get("update", 0) >= 2:
            break
        time.sleep(0.1)
    process.terminate()
    process.join(60)
    assert process.exitcode == 128 + signal.SIGTERM
    assert only_run(tmp_path).info.status == "KILLED"
    assert json.loads(progress.read_text())["state"] == "killed"
    assert (tmp_path / "stderr").read_text() == (
        f"bakeoff: interrupted. To resume the run, type: bakeoff resume={tmp_path / 'out'}\n"
    )


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("sft.steps=0",), "In 9 of 9 updates every advantage was zero"),
        (("reward.functions={length: 1}", "reward.length.margin_share=1"), "too low: try 3e-08"),
    ],
    ids=["no reward", "no step"],
)
def test_a_policy_that_does_not_move_is_reported_with_the_reason(overrides, words, tmp_path):
    few = ("batch.prompts=2", "batch.group_size=2", "checkpoint.every=0", "evaluation.every=9", "task.heldout=2")
    run = run_of(
        compose(
            *("algorithm=grpo", "tuned=none", "sft.steps=0", "algorithm.optimizer.lr=1e-9", *few, *overrides),
            "budget={unit: updates, limit: 9}",
        ),
        tmp_path,
    )
    said = []
    run.progress.report = said.append
    train(run)
    assert words in said[0]


@pytest.mark.parametrize("saved", [True, False])
def test_the_finished_actor_is_saved_unless_its_room_is_wanted(saved, tmp_path):
    few = ("batch.prompts=2", "batch.group_size=2", "checkpoint.every=0", "task.heldout=2", "sft.steps=0")
    one = "budget={unit: updates, limit: 1}"
    run = run_of(compose("algorithm=grpo", "tuned=none", *few, one, f"checkpoint.actor={str(saved).lower()}"), tmp_path)
    said = []
    run.progress.report = said.append
    train(run)
    assert (tmp_path / "actor").exists() == saved
    assert ("the actor is in" in said[-1]) == saved
