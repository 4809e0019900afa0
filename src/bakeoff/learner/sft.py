"""Supervised fine-tuning on demonstrations: the start of actor and reference, made once and kept."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from bakeoff import processes
from bakeoff.algorithm.divergence import require_finite
from bakeoff.algorithm.optimizer import Adam, Subproblem
from bakeoff.attribution import Label, attributed
from bakeoff.batch import Example, Sequences
from bakeoff.collector import Collector
from bakeoff.config import Config
from bakeoff.device import logits_bound
from bakeoff.engine.check import check_model
from bakeoff.engine.conversation import encode_turns
from bakeoff.engine.embedded import Embedded
from bakeoff.errors import UserError, disk_fault, within
from bakeoff.files import content_hash, set_aside
from bakeoff.identity import by_content, digest, plain
from bakeoff.measure.phase import Phases
from bakeoff.model.build import build
from bakeoff.model.config import Model
from bakeoff.model.encode import (
    encode,
    encode_with_completions,
    leave_out_long_prompts,
    require_distinct,
    require_room,
    text_ids,
)
from bakeoff.model.forward import ForwardSettings
from bakeoff.model.logprobs import completion_logprobs
from bakeoff.model.policy import Policy, recomputes
from bakeoff.model.weights import save
from bakeoff.paths import cache
from bakeoff.randomness import stdlib_random
from bakeoff.task.task import Task, as_read

Report = Callable[[str], None]  # takes a message for the person who watches
RECIPE = 4  # raise it when a change of this file changes its results: cached starts of another recipe are not used
# number of prompts on which sft.accuracy is checked; most and fewest steps between two checks, far from it and near
CHECKED, SELDOM, OFTEN = 512, 12, 2


@dataclass
class Supervised:
    """The supervised stage: the metrics `sft/…`, which metrics.py defines; no accuracy where none was asked for."""

    steps: int
    accuracy: float | None


def starting_policy(
    config: Config, collector: Collector, phases: Phases, report: Report
) -> tuple[Policy, Supervised | None]:
    """The policy that actor and reference start from, on the device of the phases, and the stage that made it, if any.

    The result of a supervised stage is cached under the hash of everything that it depends on, so that the runs of a
    sweep train it once and start from the same bytes. Its accuracy is that of the policy itself, whatever engine
    samples later: another sampler would end the stage at another step.
    """

    def make(folder: Path) -> None:
        policy = usable(config.model, config, phases.device)
        source = replace(collector, seed=config.sft.seed, engine=Embedded())
        stage = train(policy, config, source, phases, report)
        save(policy, folder)
        (folder / "supervised.json").write_text(json.dumps(asdict(stage)))

    if config.sft.steps == 0:
        return usable(config.model, config, phases.device), None
    key = digest({"recipe": RECIPE, **start_identity(config)})
    folder = made_once(cache() / "starts" / key, make, report)
    stage = Supervised(**json.loads((folder / "supervised.json").read_text()))
    report(f"start {key} from {folder}")
    if stage.accuracy is not None and stage.accuracy < config.sft.accuracy:
        report(
            f"sft.accuracy is {config.sft.accuracy:g}, but after sft.steps={stage.steps} steps {stage.accuracy:.3f} of "
            f"its sampled completions are right; set sft.steps higher, or sft.accuracy to at most {stage.accuracy:.2f}."
        )
    return usable(replace(config.model, name=str(folder)), config, phases.device), stage


def start_identity(config: Config) -> dict[str, Any]:
    """The part of the configuration that the start depends on; training after it is not part of it."""
    values = by_content(plain(config))
    identity = {key: values[key] for key in ("task", "model", "sft")}
    identity["model"] = {k: v for k, v in identity["model"].items() if k not in ("lora", "gradient_checkpointing")}
    identity["final"] = config.evaluation.final  # prompts that are not trained on
    return identity | ({"sampling": values["sampling"]} if config.sft.accuracy else {})


def made_once(folder: Path, make: Callable[[Path], None], report: Report) -> Path:
    """Creates the folder with `make` if it does not exist, atomically and under a file lock; returns it.

    A folder whose content has changed since is renamed, and made again. With several processes the leader makes it
    and all read it. Raises UserError where the cache cannot be written.
    """
    processes.led(lambda: _make_once(folder, make, report))
    return folder


def _make_once(folder: Path, make: Callable[[Path], None], report: Report) -> None:
    seal = folder.with_name(f"{folder.name}.sha256")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if folder.is_dir() and not (seal.is_file() and seal.read_text() == content_hash(folder)):
                aside = set_aside(folder, "damaged")
                report(f"{folder} was changed after it was made; it is kept as {aside}, and a new one is made")
            if not folder.is_dir():
                with tempfile.TemporaryDirectory(dir=folder.parent) as partial:
                    (whole := Path(partial) / folder.name).mkdir()
                    make(whole)
                    seal.write_text(content_hash(whole))
                    whole.rename(folder)
    except Exception as error:
        if not isinstance(error, OSError) and not disk_fault(error):
            raise
        raise UserError(
            f"the cache '{cache()}' cannot be written ({disk_fault(error) or error}); set BAKEOFF_CACHE to a "
            "writable folder."
        ) from error


def usable(model: Model, config: Config, device: torch.device) -> Policy:
    """The model on the device, after a check that it can be sampled and trained, and can read the task's texts."""
    policy, task = build(model, config.sft.seed), config.task
    policy.network.to(device).eval()
    check_model(policy, model.name)
    with within(
        600, "the prompts have not been read within 600 s; set task.max_prompt_tokens=0, or mend the template."
    ):
        leave_out_long_prompts(policy, task)
    known, shots = task.known_examples(), task.shot_examples()
    longest = sorted(known, key=lambda example: len(example.prompt))[-64:]
    with within(
        60,
        "the prompts have not been encoded within 60 s; mend the chat template, set model.chat=false, or choose "
        "another model.",
    ):
        require_distinct(policy, known, shots)
        require_room(policy, encode(policy, longest, shots), task.max_new_tokens)
    text_ids(policy, [example.prompt for example in known], "prompt")
    if config.sft.steps:
        shown = (task.demonstration(example) for example in known)
        turns = [[text] if isinstance(text, str) else text for text in shown if text is not None]
        text_ids(policy, list(chain.from_iterable(turns)), "demonstration")
    return policy


def train(policy: Policy, config: Config, collector: Collector, phases: Phases, report: Report) -> Supervised:
    """Trains by AdamW (weight decay 0.01) on the mean negative log-likelihood of demonstrations; returns the stage.

    It ends after `sft.steps` steps, or once `sft.accuracy` of sampled completions are right. Every check samples the
    same fresh prompts with the same draws, so that only the policy changes from check to check. EOS counts as a token.
    A ledger traces the first two steps, the second of which has optimiser state. Raises Diverged.
    """
    sft, network, accuracy, check = config.sft, policy.network, None, SELDOM
    fresh = config.task.fresh_examples(CHECKED, stdlib_random(sft.seed, "sft accuracy")) if sft.accuracy else []
    untrained = {as_read(example.prompt) for example in fresh}
    forward = ForwardSettings(logits_mb=logits_bound(config.logits_mb, policy.device))
    adam = Adam(lr=sft.lr, weight_decay=0.01)
    optimizer = adam.create(network.parameters())
    with ExitStack() as traced:
        traced.enter_context(phases.tracing(held_weights(policy), policy.embedding))
        for step in range(sft.steps):
            if step == 2:
                traced.close()
            examples = config.task.training_examples(sft.batch, stdlib_random(sft.seed, "sft", step), untrained)
            sequences = demonstrations(policy, config.task, examples)
            network.train(recomputes(network))
            with phases("sft"):
                loss = train_step(policy, sequences, adam, optimizer, forward)
            network.eval()
            last = step + 1 == sft.steps
            if step % 10 == 0 or last:
                report(f"supervised start: step {step + 1}/{sft.steps}, loss {loss.item():.3f}")
            if fresh and (step + 1 >= check or last):
                with phases("sft_accuracy"):
                    accuracy = sampled_accuracy(policy, collector, fresh)
                if accuracy >= sft.accuracy:
                    report(f"supervised start: accuracy {accuracy:.3f} after {step + 1} steps")
                    break
                check = step + 1 + max(OFTEN, round(SELDOM * (1 - accuracy / sft.accuracy)))
    with phases("sft"), torch.no_grad():  # the result must be finite too: the check of the gradient comes before a step
        logprobs = completion_logprobs(policy, sequences, forward)
        require_finite(torch.where(sequences.mask, logprobs, 0.0), "a log-probability of the policy after the step")
    return Supervised(step + 1, accuracy)


@torch.no_grad()
def sampled_accuracy(policy: Policy, collector: Collector, examples: list[Example]) -> float:
    """Share of the examples that the policy answers right, by one completion of each, sampled as in training."""
    collector.engine.load(policy)
    parts = collector.answers(policy, examples, 1, "sft accuracy")
    right = sum(verdict.score >= 1 for part in parts for verdict in collector.judge(part))
    return right / len(examples)


def held_weights(policy: Policy) -> list[tuple[Tensor, Label]]:
    """The actor's weights as the ledger counts them: all that the stage holds besides its optimiser's state."""
    network = policy.network
    return [(tensor, Label("actor", "parameters")) for tensor in (*network.parameters(), *network.buffers())]


def train_step(
    policy: Policy, sequences: Sequences, adam: Adam, optimizer: torch.optim.Optimizer, forward: ForwardSettings
) -> Tensor:
    """One step on the mean negative log-likelihood of the completions' tokens; returns it."""
    with attributed("actor", "activations"):
        logprobs = completion_logprobs(policy, sequences, forward)
        loss = -torch.where(sequences.mask, logprobs, 0.0).sum() / sequences.mask.sum()
        loss.backward()
        with attributed(kind="optimizer"):
            adam(Subproblem(optimizer))
    return loss.detach()


def demonstrations(policy: Policy, task: Task, examples: list[Example]) -> Sequences:
    """The examples with their demonstrations; raises UserError where the task has none."""
    texts = [task.demonstration(example) for example in examples]
    if None in texts:
        raise UserError("sft.steps is above 0, but the task has no demonstrations; set sft.steps=0.")
    if task.most_turns > 1:
        turns = [text if isinstance(text, list) else [str(text)] for text in texts]
        return encode_turns(policy, task, examples, turns)
    return encode_with_completions(policy, examples, [str(text) for text in texts], task.shot_examples())
