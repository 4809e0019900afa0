"""A launch survives the death of a process, and a sweep's folder takes more jobs but not another sweep's."""

import itertools
import json

import pytest
from hydra.core.utils import JobReturn, JobStatus
from joblib import Parallel, delayed

from bakeoff.arms import Job
from bakeoff.config import register
from bakeoff.errors import UserError
from bakeoff.folder import Record, write_record
from bakeoff.identity import config_id
from bakeoff.job_folders import placed
from bakeoff.paths import CONF
from bakeoff.progress import read
from bakeoff.sweep import launch_each
from bakeoff.tracking import start_run
from bakeoff.validation import compose
from tests.commands import store_of
from tests.stored import tracking

REGIMES = sorted(path.stem for path in (CONF / "regime").glob("*.yaml") if path.stem not in ("none", "plain"))


def test_a_job_whose_process_is_killed_is_named_and_the_others_finish(tmp_path):
    """Job `once` dies in its first attempt, `always` in every one."""

    def job(folder, kind):
        import os
        import signal
        from pathlib import Path

        path = Path(folder)
        again = (path / "again").exists()
        (path / "again").touch()
        (path / "progress.json").write_text(json.dumps({"name": path.name, "state": "running"}))
        if kind == "always" or (kind == "once" and not again):
            os.kill(os.getpid(), signal.SIGKILL)
        (path / "progress.json").write_text(json.dumps({"name": path.name, "state": "done"}))
        return JobReturn(status=JobStatus.COMPLETED)

    store_of(tmp_path)
    tracker = start_run(tracking(tmp_path), "sweep", {}, tmp_path)
    kinds = ["never", "always", "never", "once", "never", "never"]
    folders = [tmp_path / str(number) for number in range(len(kinds))]
    for folder in folders:
        folder.mkdir()

    def launch(jobs):
        return Parallel(n_jobs=2, backend="loky")(delayed(job)(*each) for each in jobs)

    launch_each({folder: [str(folder), kind] for folder, kind in zip(folders, kinds, strict=True)}, launch, tracker)
    states = [read(folder)["state"] for folder in folders]
    assert states == ["failed" if kind == "always" else "done" for kind in kinds]
    assert "its process was killed" in read(folders[1])["reason"]


@pytest.mark.parametrize("study", ["arena", "mismatch"])
def test_a_folder_takes_every_regime_of_its_study_and_no_other_rate(tmp_path, study):
    """A regime sets keys that no launch names; the study declares them as varied."""
    register()
    own = [each for each in REGIMES if each.startswith("sampler") == (study == "mismatch")]

    def job(regime, *more):
        settings = [f"sweeps={study}", f"regime={regime}", "algorithm=grpo", "seed=13", *more]
        return Job(settings, settings), compose(settings)

    def place(made, folder):
        return placed([made[0]], [made[1]], folder)

    made = {regime: job(regime) for regime in ("plain", *own)}
    for first, second in [*itertools.product(["plain"], own), *itertools.product(own, ["plain"])]:
        folder, (done, config) = tmp_path / f"{first}-{second}", made[first]
        (folder / "0").mkdir(parents=True)
        write_record(folder / "0", Record(config_id(config), 13, "", "", {}, done.settings, None), config)
        assert place(made[first], folder) == [folder / "0"]
        assert place(made[second], folder) == [folder / "1"]
    with pytest.raises(UserError, match=r"another sweep \(algorithm\.optimizer\.lr"):
        place(job("plain", "algorithm.optimizer.lr=0.5"), tmp_path / f"{own[0]}-plain")
