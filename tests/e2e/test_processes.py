"""One run by two processes of this machine, which gloo connects: as one process would make it, and it ends as one."""

import json
import os
import signal
from functools import partial
from pathlib import Path

import pytest

from bakeoff.errors import UserError
from bakeoff.learner.checkpoint import checkpoints
from bakeoff.predict import predict
from tests.commands import PATIENCE_S, changed_update, start, store_of
from tests.conftest import compose
from tests.together import SMALL, difference, free_port, place, together
from tests.together import curves as curves_here

# what is shared in every way: sampling, values of a second model, adapters, Fisher products, turns of an environment
CASES = [
    ["algorithm=grpo", *SMALL],
    ["algorithm=ppo", "micro_tokens=64", *SMALL],
    ["algorithm=dapo", "model.lora.rank=2", *SMALL],
    ["algorithm=trpo", *SMALL, "algorithm.optimizer.lr=1", "algorithm.optimizer.cg_iterations=3"],
    ["algorithm=grpo", "task=sort_turns", *SMALL],
]
RUN = [*SMALL, "budget.unit=updates", "budget.limit=3", "evaluation.every=3", "checkpoint.every=1", "hydra.run.dir=run"]


def test_two_processes_make_the_updates_of_one():
    leaders, others = together(CASES)
    for case, leader, other in zip(CASES, leaders, others, strict=True):
        assert difference(other, leader)[0] == 0.0, "what everyone has is the same"
        assert difference(leader, curves_here(case))[0] < 1e-5, case


def test_weights_in_parts_make_the_updates_of_whole_ones():
    cases = [["algorithm=grpo", *SMALL], ["algorithm=ppo", "micro_tokens=64", *SMALL]]
    leaders, others = together([[*case, "processes=2", "shard=true"] for case in cases])
    for case, leader, other in zip(cases, leaders, others, strict=True):
        assert difference(other, leader)[0] == 0.0
        assert difference(leader, curves_here(case))[0] < 1e-4, case


def test_a_prediction_knows_processes_and_parts():
    def peak(*overrides):
        return predict(compose("algorithm=ppo", "mode=predict", *SMALL, "batch.prompts=16", *overrides)).peak

    assert peak("processes=4", "shard=true") < peak("processes=4") < peak()


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """Runs `bakeoff …` as torchrun starts it twice; `before` are called first by the second process."""

    def run(*arguments, before=()):
        store_of(tmp_path)
        port, started = free_port(), []
        for rank in range(2):
            for name, value in place(rank, 2, port).items():
                monkeypatch.setenv(name, value)
            output = tmp_path / f"output{rank}"
            output.mkdir(exist_ok=True)
            started.append(start("bakeoff.__main__", arguments, tmp_path, output, *(before if rank else ())))
        for name in place(0, 2, port):
            monkeypatch.delenv(name)
        for process in started:
            process.join(PATIENCE_S)
        folders = [tmp_path / f"output{rank}" for rank in range(2)]
        texts = [(folder / "stdout").read_text() + (folder / "stderr").read_text() for folder in folders]
        return [process.exitcode for process in started], texts

    return run


def metrics(folder: Path) -> dict[tuple[str, int], float]:
    """The logged metrics of training by name and update."""
    entries = [json.loads(line.split(" ", 2)[2]) for line in (folder / "tracking.jsonl").read_text().splitlines()]
    rows = [row for entry in entries for row in entry.get("metrics", [])]
    return {(n, step): value for n, value, _, step in rows if n.startswith(("reward/", "kl/", "policy/", "eval/"))}


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def fail():
    raise ValueError("a fault of the second process")


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_signal_at_any_process_is_everyones_and_one_process_goes_on(pair, command, tmp_path):
    codes, (leader, other) = pair("algorithm=grpo", *RUN, before=[partial(changed_update, 2, terminate)])
    assert codes == [128 + signal.SIGTERM, 0]
    assert "To resume the run, type: bakeoff resume=" in leader
    assert other.count("\n") <= 1, "only the leader is heard"
    assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")][-1] == "update_000002"
    resumed = command("resume=run", "processes=1")
    assert resumed.returncode == 0, resumed.stderr
    alone = command("algorithm=grpo", *RUN[:-1], "hydra.run.dir=alone")
    assert alone.returncode == 0, alone.stderr
    one, other = metrics(tmp_path / "alone"), metrics(tmp_path / "run")
    assert one.keys() == other.keys()
    assert all(other[key] == pytest.approx(value, rel=1e-5, abs=1e-6) for key, value in one.items())


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (fail, "bakeoff: process 1 has failed: ValueError: a fault of the second process."),
        (kill, "bakeoff: another process of the run was killed, probably because memory ran out."),
    ],
)
def test_an_error_of_one_process_ends_all_with_one_sentence(pair, fault, sentence):
    codes, (leader, other) = pair("algorithm=grpo", *RUN, before=[partial(changed_update, 2, fault)])
    assert codes[0] == 2
    assert next(line for line in leader.splitlines() if line.startswith("bakeoff: ")).startswith(sentence)
    assert "Traceback" not in leader + other


def test_bakeoff_starts_the_processes_itself(command, tmp_path):
    result = command("algorithm=grpo", *RUN, "budget.limit=1", "processes=2")
    assert result.returncode == 0, result.stderr
    assert "starting 2 processes" in result.stdout
    assert result.stdout.count("100%") == 1
    assert (tmp_path / "run" / "actor" / "config.json").is_file()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["processes=0"], "processes is 0; it must be at least 1"),
        (["processes=9", "batch.prompts=8"], "batch.prompts is 8, and algorithm.optimizer.minibatches 1"),
        (["processes=2", "mode=gradient_quality"], "measures in one process"),
        (["processes=2", "engine=vllm"], "engine is vllm, which decodes for one process"),
        (["shard=true"], "processes is 1, so no other process holds a part"),
        (["processes=2", "shard=true", "model.lora.rank=2"], "model.lora.rank is 2, whose base is frozen"),
        (["processes=2", "shard=true", "offload=true"], "offload is true, which moves whole weights"),
        (["processes=2", "shard=true", "algorithm/optimizer=trpo"], "algorithm/optimizer is trpo"),
    ],
)
def test_what_processes_cannot_share_is_refused(overrides, words):
    with pytest.raises(UserError, match=words):
        compose("algorithm=grpo", "tuned=none", "algorithm.optimizer.minibatches=1", *overrides)


def test_a_sweep_runs_each_job_in_one_process(command):
    result = command("-m", "algorithm=grpo,ppo", "processes=2")
    assert result.returncode == 2
    assert "a sweep runs each job in one process" in result.stderr
