"""A run's metrics as one artifact: what it holds after a kill and a resume, and when a report does not read it."""

import pytest

from bakeoff.mlflow_store import METRICS, Tracking
from bakeoff.report.store import run_metrics
from bakeoff.tracking import start_run
from tests.commands import store_of


@pytest.fixture
def tracking(tmp_path):
    return Tracking(uri=f"sqlite:///{store_of(tmp_path)}")


def read(tracker):
    run = tracker.client.get_run(tracker.run_id)
    table = run_metrics(tracker.client, run).to_pandas()
    return {(row.metric, row.step): row.value for row in table.itertuples()}


def artifact(tracker) -> bool:
    return METRICS in {file.path for file in tracker.client.list_artifacts(tracker.run_id)}


def test_a_resumed_run_holds_its_history_once_with_the_later_values(tracking, tmp_path):
    """Killed with kill -9 after step 3, resumed from a checkpoint of step 1: steps 2 and 3 are logged twice."""
    killed = start_run(tracking, "run", {}, tmp_path)
    for step in (1, 2, 3):
        killed.metrics({"reward/mean": 0.1 * step, "old": 7.0}, step)
    killed.flush()
    assert not artifact(killed)
    assert read(killed)["reward/mean", 3] == pytest.approx(0.3), "a running run, by the public API"
    resumed = start_run(tracking, "run", {}, tmp_path, resume=killed.run_id)
    with resumed.running():
        for step in (2, 3, 4):
            resumed.metrics({"reward/mean": float(step)}, step)
    assert artifact(resumed)
    rewards = {step: value for (metric, step), value in read(resumed).items() if metric == "reward/mean"}
    assert rewards == pytest.approx({1: 0.1, 2: 2.0, 3: 3.0, 4: 4.0})
    assert ("old", 2) in read(resumed), "logged before the kill alone"


def test_a_failed_run_leaves_its_metrics_and_one_that_resumes_it_is_not_read_from_them(tracking, tmp_path):
    failed = start_run(tracking, "run", {}, tmp_path)
    failed.metrics({"a": 1.0}, 1)
    with pytest.raises(ZeroDivisionError), failed.running():
        _ = 1 / 0
    assert artifact(failed)
    resumed = start_run(tracking, "run", {}, tmp_path, resume=failed.run_id)
    resumed.metrics({"a": 2.0}, 2)
    resumed.flush()
    assert read(resumed) == {("a", 1): 1.0, ("a", 2): 2.0}


def test_a_run_without_metrics_leaves_no_artifact(tracking, tmp_path):
    parent = start_run(tracking, "sweep", {}, tmp_path)
    with parent.running():
        pass
    assert not artifact(parent)
    assert parent.client.get_run(parent.run_id).info.status == "FINISHED"


def test_a_run_whose_artifact_is_gone_is_read_from_the_store(tracking, tmp_path):
    run = start_run(tracking, "run", {}, tmp_path)
    with run.running():
        run.metrics({"a": float("nan"), "b": 1.0}, 1)
    (path,) = tmp_path.glob(f"mlartifacts/{run.run_id}/artifacts/{METRICS}")
    path.unlink()
    found = read(run)
    assert found["b", 1] == 1
    assert found["a", 1] != found["a", 1], "NaN stays NaN"
