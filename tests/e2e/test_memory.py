"""Memory through the commands that a user types: predicted, measured and exhausted."""

import json
import re
from pathlib import Path

import pytest
from mlflow import MlflowClient

SHORT = ["budget.limit=64", "evaluation={every: 9, final: 0}", "task.heldout=8", "checkpoint.every=0"]
SHORT += ["sft={steps: 1, batch: 8, accuracy: 0}"]
SMALL = ["batch.prompts=4", "batch.group_size=4", *SHORT]


def runs(folder, query="tags.algorithm LIKE '%'"):
    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("bakeoff")
    return client, client.search_runs([experiment.experiment_id], query, order_by=["attributes.start_time ASC"])


def test_a_prediction_is_a_run_that_trains_nothing(command, tmp_path):
    result = command("algorithm=ppo", "micro_tokens=48", *SMALL, module="bakeoff.predict_command")
    assert result.returncode == 0, result.stderr
    assert "kv_cache" in result.stdout
    assert "4 prompts of 11 tokens, 4 completions each of" in result.stdout
    (run,) = runs(tmp_path)[1]
    assert (run.info.status, run.data.tags["kind"]) == ("FINISHED", "prediction")
    assert run.data.metrics["memory/peak_mb"] > 1
    assert not any(name.startswith(("reward/", "eval/")) for name in run.data.metrics)


def test_a_prediction_for_a_device_states_seconds_hours_and_price(command, tmp_path):
    result = command("hardware=l4", "hardware.memory_gb=1e-3", "price=3.5", *SMALL, module="bakeoff.predict_command")
    assert result.returncode == 0, result.stderr
    said = " ".join(result.stdout.split())
    assert "one update on L4" in said
    assert "seconds (uncalibrated)" in said
    assert re.search(r"L4: [\d.e-]+ hours \(uncalibrated\), [\d.]+ \(uncalibrated\) at 3.5 an hour for 4 updates", said)
    assert "It does not fit" in said
    (run,) = runs(tmp_path)[1]
    phases = [value for name, value in run.data.metrics.items() if name.startswith("time/predicted_")]
    assert min(phases) > 0
    hours = run.data.metrics["time/predicted_hours"]
    assert hours == pytest.approx(4 * (sum(phases) - hours) / 3600)


def test_methods_are_predicted_side_by_side(command, tmp_path):
    side_by_side = ("algorithm=ppo,grpo", "hardware=l4", "price=3.5", *SMALL)
    result = command(*side_by_side, module="bakeoff.predict_command")
    assert result.returncode == 0, result.stderr
    cells = {tuple(line.split()[:-2]): line.split()[-2:] for line in result.stdout.splitlines()}
    assert ("ppo", "grpo") in [tuple(line.split()) for line in result.stdout.splitlines()]
    for row in (("in", "all", "fits", "L4"), ("updates",), ("hours",), ("price",), ("seconds", "per", "update")):
        assert len(cells[row]) == 2, row
    assert cells["rates", "of", "the", "device"] == ["uncalibrated", "uncalibrated"]
    assert float(cells["hours",][0]) > float(cells["hours",][1]), "a critic costs"
    assert re.search(r"^ +critic +[\d.]+ MB *$", result.stdout, re.MULTILINE), "PPO's, and none of GRPO's"
    assert not (tmp_path / "outputs").exists()


def test_an_unknown_model_is_refused_in_one_sentence(command):
    result = command("model=hf", "model.name=nowhere/nothing", "task=largest", module="bakeoff.predict_command")
    assert result.returncode == 2
    assert "model.name is 'nowhere/nothing'" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_job_out_of_memory_names_phase_role_and_remedy_and_is_not_in_the_memory_of_the_next(command, tmp_path):
    """Jobs run one after another in one process; the large one, which fails, is not in the peak of the small one."""
    alone = command("seed=3", "algorithm=ppo", "memory_limit_mb=6", *SMALL)  # a limit traces every update
    assert alone.returncode == 0, alone.stderr
    result = command(
        *("-m", "hydra/launcher=basic", "algorithm=ppo", "memory_limit_mb=6", "seed=3"),
        *("batch.prompts=64,4", "batch.group_size=4", *SHORT),
    )
    assert result.returncode == 2
    sentence = " ".join(result.stderr.split())
    for words in ("1 of 2 jobs did not finish", "out of memory in ", "saves most: its peak is predicted at"):
        assert words in sentence
    assert "Traceback" not in sentence
    client, found = runs(tmp_path)
    small_alone, large, small_after = found
    assert [run.info.status for run in found] == ["FINISHED", "FAILED", "FINISHED"]
    assert large.data.tags["outcome"] == "out of memory"
    phase = large.data.tags["out_of_memory.phase"]
    assert phase in ("rollout", "experience", "actor_update")
    rows = json.loads(Path(client.download_artifacts(large.info.run_id, "ledger.json", str(tmp_path))).read_text())
    at = [row for row in rows if row["phase"] == phase]
    assert max(at, key=lambda row: row["bytes"])["role"] == large.data.tags["out_of_memory.role"]
    assert sum(row["bytes"] for row in at) > 6e6
    assert large.data.metrics["memory/rollout_mb"] > 1.5 * small_alone.data.metrics["memory/rollout_mb"]
    skipped = ("memory/sft", "memory/rss")  # only the first run of a seed trains its start
    names = [name for name in small_alone.data.metrics if name.startswith("memory/") and not name.startswith(skipped)]
    assert len(names) > 20
    after = {name: small_after.data.metrics[name] for name in names}
    assert after == pytest.approx({name: small_alone.data.metrics[name] for name in names})


def test_predicted_memory_is_logged_beside_measured_memory(command, tmp_path):
    result = command("algorithm=grpo", "measure.memory_prediction=true", *SMALL)
    assert result.returncode == 0, result.stderr
    metrics = runs(tmp_path)[1][0].data.metrics
    for phase in ("rollout", "experience", "actor_update"):
        assert metrics[f"memory/predicted_{phase}_mb"] == pytest.approx(metrics[f"memory/{phase}_mb"], rel=0.05)
    assert metrics["memory/rss_mb"] > metrics["memory/peak_mb"]


def test_the_critic_page_leads_with_the_cost_of_the_critic(command, report, tmp_path):
    """A small study of trained arms and predicted groups; its page states the cost of the critic first."""
    short = ["batch.prompts=4", "batch.group_size=4", "task.heldout=16", "evaluation.every=1"]
    short += ["sft={steps: 3, accuracy: 0}"]
    few = ["budget={unit: updates, limit: 2}", "micro_tokens=128", "hydra/launcher=basic"]
    few += ["++model.architecture.num_hidden_layers=1", "algorithm.optimizer.epochs=1"]
    ran = command("sweeps=critic", "arm=critic_none,critic_separate", "seed=1,2", *short, *few)
    assert ran.returncode == 0, ran.stderr
    predicted = ["task=sort", "model=tiny", "batch.group_size=2,4", "lengths.prompt=12", "lengths.completion=11"]
    ran = command("sweeps=memory_group", *predicted, "hydra/launcher=basic")
    assert ran.returncode == 0, ran.stderr
    reported = report("critic")
    assert reported.returncode == 0, reported.stderr
    page = (tmp_path / "reports" / "critic.html").read_text()
    sentence = re.search(r"Dropping PPO.s separate critic .*? over 2 seeds", page)
    assert sentence
    assert page.index(sentence[0]) < page.index("<h2")
    figures = len(re.findall(r'class="jp-RenderedSVG', page))
    assert figures == 4, "by role, by kind, over the phases, and memory against accuracy"
    assert "Prediction against measurement" in page
    assert "Traceback" not in page
    reported = report("memory_group")
    assert reported.returncode == 0, reported.stderr
    assert "critic_separate G=4" in reported.stdout
    page = (tmp_path / "reports" / "memory_group.html").read_text()
    assert "GRPO needs more memory than PPO with 2 completions per prompt" in page
    assert "What it earns" not in page, "nothing was trained"
