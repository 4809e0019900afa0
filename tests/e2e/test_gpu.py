"""Commands on a machine with a virtual GPU: a run, killed and resumed, ends with the CPU's curve."""

import signal
from functools import partial

import pandas as pd

from tests.commands import call, dies_in_update
from tests.stored import history, only_run
from tests.virtual_gpu import enters_a_virtual_gpu

FEW = [f"preferences.{value}" for value in ("pairs=4", "heldout=2", "steps=2", "batch=2")]
WHOLE = [
    *(
        "algorithm=ppo",
        "algorithm.optimizer.epochs=1",
        "algorithm.critic.optimizer.epochs=1",
        "tuned=none",
        "reward=learned",
    ),
    "++model.architecture.num_hidden_layers=1",
    *("model.precision=bfloat16", "offload=true", "sft.steps=2", "sft.batch=8"),
    *("batch.prompts=8", "batch.group_size=2", "task.digits=2", "task.max_new_tokens=3", "task.heldout=2", *FEW),
    *("evaluation.every=2", "checkpoint.every=2", "budget={unit: updates, limit: 3}", "hydra.run.dir=out"),
]


def test_a_run_killed_on_a_gpu_resumes_and_ends_with_the_cpus_curve(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    gpus = ("device=cuda", "memory_limit_mb=1000", "measure.memory_snapshot=true", "deterministic=true")
    killed = call("bakeoff.__main__", (*WHOLE, *gpus), there, enters_a_virtual_gpu, partial(dies_in_update, 3))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = call("bakeoff.__main__", ("resume=out",), there, enters_a_virtual_gpu)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed after update 2" in resumed.stdout
    plain = call("bakeoff.__main__", (*WHOLE, "device=auto"), here)
    assert plain.returncode == 0, plain.stderr
    pd.testing.assert_series_equal(history(there), history(here), check_exact=True)
    run = only_run(there)
    assert run.data.tags["device"] == "virtual GPU"
    assert run.data.metrics["time/checkpoint"] > 0
    assert run.data.metrics["memory/checkpoint_reserved_mb"] > 0


def test_every_line_of_make_gpu_passes_on_a_cpu(tmp_path):
    """At its smallest size, every section runs, every line passes, and the table is written."""
    result = call("benchmarks.gpu", ("--device", "cpu", "--small", "--out", "table.md"), tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    page = (tmp_path / "table.md").read_text()
    assert result.stdout.strip() == page.strip()
    lines = [line for line in page.splitlines() if line.endswith("pass      |")]
    assert len(lines) == 10
    for part in ("device cpu", "torch 2", "date 20", "commit ", "ms a token", "logits_mb=1024", "deterministic=true"):
        assert part in page
