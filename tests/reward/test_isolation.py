"""Code of others: what it cannot do, what its failures cost, and that it ends with the run."""

import os
import signal
import socket
import string
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bakeoff.errors import UserError
from bakeoff.reward.isolation import Failure, Workers
from bakeoff.reward.reward import Reward
from bakeoff.task.sort import Sort
from tests.chaos.hostile import trials
from tests.conftest import compose, loop_of, update_of
from tests.reward import scorers
from tests.reward.test_reward import rollout  # noqa: F401

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the limits are Linux's")


@pytest.fixture(scope="module")
def workers():
    return Workers({"act": scorers.act}, memory_mb=500)


def called(workers, *calls, seconds=0.5, spread=True):
    return workers.map("act", calls, seconds, seed=5, spread=spread)


def test_results_keep_the_order_of_their_calls(workers):
    assert called(workers, *(("return", number) for number in range(101)), seconds=20) == list(range(101))
    assert called(workers) == []


@pytest.mark.parametrize("spread", [True, False])
@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        ("big power", "took more than 0.5 s"),
        ("sleep", "took more than 0.5 s"),
        ("spin", "took more than 0.5 s"),
        ("leave", "raised SystemExit: 0"),
        ("die", "ended its process"),
        ("raise", "raised KeyError: 'level'"),
        ("interrupt", "ended its process"),
        pytest.param("much memory", "raised MemoryError", marks=on_linux),
    ],
)
def test_a_call_that_fails_costs_nothing_but_itself(workers, deed, reason, spread):
    first, failure, *rest = called(workers, ("return", 1), (deed,), ("return", 2), ("return", 3), spread=spread)
    assert (first, rest) == (1, [2, 3])
    assert isinstance(failure, Failure)
    assert reason in failure.reason


def test_a_failure_names_the_line_of_the_scorer(workers):
    (failure,) = called(workers, ("raise",))
    line = 1 + Path(scorers.__file__).read_text().splitlines().index('    "raise": lambda _: {}["level"],')
    assert failure.reason.endswith(f"({scorers.__file__}:{line})")


@on_linux
def test_a_worker_changes_no_file_but_may_use_a_scratch_folder(workers, tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("mine")
    found = called(workers, ("write", str(tmp_path / "new")), ("write", str(kept)), ("delete", str(kept)), ("scratch",))
    assert [isinstance(each, Failure) for each in found] == [True, True, True, False]
    assert found[3] == "kept"
    assert kept.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [kept]


@on_linux
def test_a_worker_reaches_no_network_and_no_other_process(workers):
    other = subprocess.Popen(["sleep", "100"])
    with socket.create_server(("127.0.0.1", 0)) as server:
        found = called(workers, ("connect", server.getsockname()[1]), ("kill", other.pid), seconds=10)
    assert [isinstance(each, Failure) for each in found] == [True, True]
    assert other.poll() is None
    other.kill()
    other.wait()


def test_draws_are_those_of_the_seed_in_whichever_worker(workers):
    draws = called(workers, *[("draw",)] * 9, seconds=20)
    assert draws == [draws[0]] * 9
    assert workers.map("act", [("draw",)], 20, seed=6, spread=True) != draws[:1]


def test_workers_end_with_a_run_that_is_killed(tmp_path):
    """The kernel tells them, though one of them hangs."""
    code = (
        "import time; from bakeoff.reward.isolation import Workers\n"
        "w = Workers({'sleep': time.sleep}, 500)\n"
        "w.map('sleep', [(0,)], 20, 0, False); print(w._workers[0]._pid, flush=True)\n"
        "w.map('sleep', [(1000,)], 1000, 0, False)"
    )
    paths = os.pathsep.join(sys.path)
    run = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths}
    )
    worker = int(run.stdout.readline())
    os.kill(worker, 0)
    run.kill()
    run.wait()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker outlived the run")


def test_a_function_that_fails_on_some_completions_costs_only_those(rollout):  # noqa: F811
    reward = Reward({"tests.reward.scorers.dies_of_seven": 1.0}, timeout_s=5)
    assert not reward(Sort(digits=2), rollout).failed.any()
    rollout.completions[2] = "373"
    scores = reward(Sort(digits=2), rollout)
    assert scores.failed.tolist() == [False, False, True, False]
    assert scores.total.tolist() == [2, 1, 0, 0]


@pytest.mark.parametrize(
    ("name", "words", "isolated"),
    [
        ("always_raises", "raised KeyError: 'weights'", False),
        ("level", "raised TypeError: .*'level'", False),
        ("exits", "raised SystemExit", False),
        ("never_returns", "took more than", True),
    ],
)
def test_a_function_that_never_works_is_named_with_its_line(rollout, name, words, isolated):  # noqa: F811
    for example in rollout.examples:
        example.columns = {}
    reward = Reward({f"tests.reward.scorers.{name}": 1.0}, isolated=isolated, timeout_s=0.1)
    line = next(
        n for n, text in enumerate(Path(scorers.__file__).read_text().splitlines(), 1) if f"def {name}(" in text
    )
    with pytest.raises(UserError, match=rf"reward\.functions: .*{name} \(.*scorers.py:{line}\) {words}") as caught:
        reward(Sort(digits=2), rollout)
    assert ("reward.isolated=false" in str(caught.value)) == isolated
    assert "it is called with" in str(caught.value)


def test_a_hostile_completion_harms_no_scorer_of_reasoning_gym():
    """Each of these evaluates the completion as Python; `python -m tests.chaos.hostile` tries all."""
    texts = (
        "open('MARKER', 'w').write('x')",
        "[[open('MARKER', 'w').write('x')]]",
        "__import__('os').system('touch MARKER')",
        "9**9**9**9",
        "exit()",
        "__import__('os')._exit(0)",
        "nan",
        "(" * 5000,
    )
    found = trials(["countdown", "binary_matrix", "string_insertion", "prime_factorization"], texts)
    assert [trial for trial in found if trial.fault] == []
    assert 0 < sum(trial.failed for trial in found) < len(found)


def test_a_run_goes_on_where_the_verifier_raises_and_counts_it():
    """The scorer of prime_factorization takes numbers only; the test above has it called in a worker."""
    small = [
        "reward.isolated=false",
        "tuned=none",
        "sft.steps=0",
        "task.heldout=4",
        "batch.prompts=2",
        "batch.group_size=2",
    ]
    config = compose(*small, "task=reasoning_gym", "task.generator=prime_factorization", "task.max_new_tokens=8")
    config.model.characters = string.printable + "×"
    assert update_of(loop_of(config))["reward/failed"] > 0
