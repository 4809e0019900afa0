"""Runs on a virtual GPU: every method, role, setting and mode, taken from the registries, has the CPU's numbers.

Like CUDA, the virtual GPU refuses an operator whose tensors are on different devices, in backward passes too. The
metrics of a run on it must equal those of the run on the CPU bit for bit. The allocator's count of bytes, which is
independent of the ledger, must equal the ledger's.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bakeoff.algorithm import AXES
from bakeoff.batch import Example
from bakeoff.config import Config, Mode, Quality
from bakeoff.engine.engine import Request
from bakeoff.errors import UserError
from bakeoff.job import run_job
from bakeoff.learner.checkpoint import save_checkpoint
from bakeoff.learner.holdings import held, state
from bakeoff.loop import update_once
from bakeoff.measure import NOT_REPRODUCIBLE
from bakeoff.model.config import Precision
from bakeoff.model.weights import save
from bakeoff.paths import CONF
from bakeoff.savings import cheaper
from bakeoff.validation import validate
from benchmarks.start import endless
from tests.commands import store_of
from tests.conftest import compose, loop_of, update_of
from tests.test_every_method import FEW_WITH_EVERY_OPTION, METHODS, options_of
from tests.virtual_gpu import GPU, VirtualGPU, virtual_gpu

REWARDS = sorted(path.stem for path in (CONF / "reward").glob("*.yaml"))
SMALL = [
    *("tuned=none", "batch.prompts=2", "batch.group_size=2", "sft.steps=0", "measure.kl_sequences=2"),
    *("task.digits=2", "task.max_new_tokens=3", "task.heldout=2", "++model.architecture.num_hidden_layers=1"),
]


def composed(*overrides: str) -> Config:
    """A small configuration with short updates, each of which ends an outer iteration."""
    algorithm = (config := compose(*SMALL, *overrides)).algorithm
    for taken in [
        algorithm.optimizer,
        *([algorithm.critic.optimizer] if algorithm.critic.takes_steps else []),
    ]:
        taken.epochs = 1
        for key in {"cg_iterations", "backtracks"} & set(vars(taken)):
            setattr(taken, key, 2)
    if algorithm.kl_to_reference.iteration_updates:
        algorithm.kl_to_reference.iteration_updates = 1
    return config


def check(config: Config):
    """Asserts that two updates on the virtual GPU have the CPU's numbers and that the ledger explains every byte."""
    here = loop_of(config)
    expected = [update_of(here) for _ in range(2)]  # tracing, which is slow, changes nothing but metrics of memory
    with virtual_gpu() as gpu:
        loop = loop_of(replace(config, deterministic=True))
        assert loop.phases.device == GPU
        for numbers, traced in zip(expected, (False, True), strict=True):
            measured = update_of(loop, traced)
            compared = {k: v for k, v in numbers.items() if not k.startswith(NOT_REPRODUCIBLE)}
            assert {k: v for k, v in measured.items() if not k.startswith(NOT_REPRODUCIBLE)} == compared
        kept = [t for t, label in held(loop.learner) if label.kind != "parked" and t.dim()]
        assert {tensor.device for tensor in kept} == {GPU}
    assert gpu.launches > 500
    remainders = {phase: peak.remainder for phase, peak in loop.phases.traced.items()}
    assert set(remainders.values()) == {0}, remainders


@pytest.mark.parametrize("method", FEW_WITH_EVERY_OPTION)
def test_every_option_of_a_method_has_the_cpus_numbers(method):
    check(composed(f"algorithm={method}"))


@pytest.mark.parametrize("critic", sorted(set(AXES["critic"]) - {"none", "separate"}))
@pytest.mark.parametrize("rank", [0, 2])
def test_every_kind_of_critic_has_the_cpus_numbers(critic, rank):
    check(composed("algorithm=ppo", f"algorithm/critic={critic}", f"model.lora.rank={rank}"))


CHOSEN = set().union(*map(options_of, METHODS))
OPTIONS = {(axis, name) for axis, options in AXES.items() for name in options if axis != "critic"}


NAMED = {("kl_to_reference", "distillation")}  # it needs the name of a model: tests/learner/test_teacher.py


@pytest.mark.parametrize(("axis", "name"), sorted(OPTIONS - CHOSEN - NAMED))
def test_every_option_that_no_method_uses_has_the_cpus_numbers(axis, name):
    for method in ("grpo", "ppo"):
        config = composed(f"algorithm={method}")
        setattr(config.algorithm, axis, AXES[axis][name])
        try:
            validate(config)
        except UserError:
            continue
        return check(config)
    pytest.fail(f"neither grpo nor ppo takes algorithm/{axis}={name}")


@pytest.mark.parametrize("reward", REWARDS)
def test_every_reward_has_the_cpus_numbers(reward):
    """From a supervised start, the method renews its reference and a learned reward in every update."""
    stages = {"sft": "steps=4,batch=8", "preferences": "pairs=4,heldout=2,steps=2,batch=2,renewal_steps=2"}
    short = [f"{group}.{value}" for group, values in stages.items() for value in values.split(",")]
    sampled = ["preferences.renewal_pairs=1", "batch.prompts=8", "batch.group_size=4"]
    check(composed("algorithm=grpo_iterative", f"reward={reward}", *short, *sampled))


@pytest.mark.parametrize("precision", [each.value for each in Precision])
def test_every_precision_has_the_cpus_numbers(precision):
    """Sampling is truncated, the critic is an adapter on the actor's base, and inexact log-probs are computed again."""
    shared = ["algorithm/critic=adapter", "model.lora.rank=2", "sampling.top_k=5", "sampling.top_p=0.9"]
    shared += ["algorithm/correction=truncate"]
    check(composed("algorithm=ppo", f"model.precision={precision}", *shared))


@pytest.mark.parametrize("setting", [name for name, _ in cheaper(composed("algorithm=ppo"))])
def test_every_setting_that_saves_memory_has_the_cpus_numbers(setting):
    check(dict(cheaper(composed("algorithm=ppo")))[setting])


@pytest.mark.parametrize("mode", [mode for mode in Mode if mode is not Mode.train], ids=lambda mode: mode.value)
def test_every_mode_has_the_cpus_result(mode, tmp_path):
    """The job runs as from the command line, from the choice of the device on; a prediction uses no device."""
    config = composed("algorithm=ppo", f"mode={mode.value}")
    config.quality = Quality(critic_updates=1, batches=2, reference_batches=2, continuations=2)
    store_of(tmp_path)
    config.tracking.uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    result = job(config, tmp_path / "here")
    with virtual_gpu() as gpu:
        assert job(config, tmp_path / "there") == result
    assert (gpu.launches > 500) == (mode is not Mode.predict)


def job(config: Config, folder: Path) -> float:
    return run_job(config, folder, {"algorithm": "ppo"}, [], None, quiet=True)


def counts_of(gpu: VirtualGPU, work: Callable[[], object]) -> tuple[int, int]:
    """Number of kernels that the work launches, and number of times that the host waits for the GPU."""
    launches, waits = gpu.launches, gpu.waits.total()
    work()
    return gpu.launches - launches, gpu.waits.total() - waits


@pytest.mark.parametrize(("greedy", "stop"), [(False, ()), (True, ()), (False, ("absent",))])
def test_a_decoded_token_launches_at_most_75_kernels_and_the_host_waits_once_in_16_tokens(greedy, stop):
    """Measured between completions of 3 and of 35 tokens: a layer of tiny, its head and a draw. Prompts are padded."""
    with virtual_gpu() as gpu:
        loop = endless(loop_of(composed("algorithm=grpo")))
        engine, actor = loop.collector.engine, loop.learner.actor
        padded = loop.collector.prompts(actor, [Example("1=", ""), Example("12345=", "")])
        engine.load(actor)

        def decode(tokens: int) -> None:
            engine.generate(Request(padded, 16, loop.collector.sampling, tokens, greedy=greedy, stop=stop))

        short, long = counts_of(gpu, lambda: decode(3)), counts_of(gpu, lambda: decode(35))
    launches, waits = (b - a for a, b in zip(short, long, strict=True))
    assert waits == 2
    assert launches / 32 <= 75


def test_an_update_launches_at_most_2700_kernels_and_waits_at_most_52_times():
    """With offloading, copies to page-locked memory are queued and cost at most three waits per phase."""
    counts, tensors = {}, 0
    for offload in (False, True):
        with virtual_gpu() as gpu:
            loop = loop_of(composed("algorithm=ppo", f"offload={offload}"))
            update_once(loop)  # before it, optimisers have no state to move
            counts[offload] = counts_of(gpu, lambda loop=loop: update_of(loop))
            tensors = len(list(state(loop.learner)))
    launches, waits = counts[False]
    assert launches <= 2700
    assert waits <= 52
    phases = 7  # each waits twice for the timer and once for the tensors that leave the GPU
    assert counts[True][1] - waits <= 3 * phases < tensors


@pytest.mark.parametrize("overrides", [["algorithm=ppo"], ["algorithm=grpo", "model.lora.rank=2"]], ids=str)
def test_saving_takes_no_gpu_memory(overrides, tmp_path):
    """Neither a checkpoint nor the saved actor, whose adapter is merged into a copy, clones a model on the GPU."""
    with virtual_gpu() as gpu:
        learner = (loop := loop_of(composed(*overrides))).learner
        update_once(loop)
        torch.cuda.reset_peak_memory_stats()
        before = gpu.peak
        saved = save_checkpoint(tmp_path / "checkpoints", learner, {}, keep=1)
        save(learner.actor, tmp_path / "actor")
        assert gpu.peak <= before + 4096, "only scalars may be added"
        for name, tensors in learner.trained().items():
            stored = load_file(saved / f"{name}.safetensors")
            assert stored.keys() == tensors.keys()
            assert all(torch.equal(stored[key], tensor.detach().cpu()) for key, tensor in tensors.items())
