"""The command `bakeoff-evaluate`: held-out accuracy and pass@k of a run, a checkpoint, an exported actor or a model."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from rich.console import Console

from bakeoff.arguments import add_config_dir, read_arguments
from bakeoff.config import Config, Sft, register
from bakeoff.errors import UserError, answering
from bakeoff.folder import read_config, read_record
from bakeoff.heldout import held_out_of
from bakeoff.identity import plain
from bakeoff.learner.checkpoint import STATE, damage_of, load_checkpoint
from bakeoff.learner.sft import usable
from bakeoff.model.config import Lora
from bakeoff.model.policy import Policy
from bakeoff.nearest import unknown
from bakeoff.resume import apply, refuse_code, restored
from bakeoff.start import collector_of, prepare, start
from bakeoff.terminal import plain_table
from bakeoff.validation import compose, validate


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The arguments, those of this process by default; raises UserError for a mistake in them."""
    parser = argparse.ArgumentParser(
        prog="bakeoff-evaluate",
        description=__doc__,
        epilog="For example: bakeoff-evaluate outputs/runs/… --samples 16; bakeoff-evaluate Qwen/Qwen2.5-0.5B-Instruct "
        "task=my_task. Without such keys, task, model and sampling are the run's own.",
    )
    parser.add_argument("model", help="a run's folder, a checkpoint in it, an actor, or a Hugging Face name")
    parser.add_argument("overrides", nargs="*", help="keys of `bakeoff`: task=my_task, sampling.temperature=0.6")
    parser.add_argument("--samples", type=int, default=8, help="sampled completions per prompt (default: 8)")
    add_config_dir(parser)
    found = read_arguments(parser, arguments)
    if found.samples < 1:
        raise UserError(f"--samples is {found.samples}; it must be at least 1.")
    return found


check = parse  # keys are those of a run's own configuration: early.py knows its options alone


def main() -> None:
    """Prints the accuracies; exit code 2 for a user's mistake."""
    console = Console()
    with answering("bakeoff-evaluate"):
        arguments = parse()
        register()
        config, policy = chosen(arguments.model, arguments.overrides)
        collector = collector_of(config)
        examples = collector.task.final_examples()
        found = held_out_of(policy, collector, examples, arguments.samples)
    title = f"{arguments.model}: {len(examples)} held-out prompts, {arguments.samples} samples of each"
    table = plain_table(title, ("",), ("accuracy", "standard error (at most)"))
    values = {"greedy": found.greedy_accuracy, "sampled": found.sampled_accuracy}
    values |= {f"pass@{k}": value for k, value in found.pass_at.items()}
    for name, value in values.items():
        error_of_mean = (value * (1 - value) / len(examples)) ** 0.5  # over prompts, which bounds that of samples
        table.add_row(name, f"{value:.3f}", f"{error_of_mean:.3f}")
    console.print(table)
    if found.failed:
        console.print(f"{found.failed:.1%} of the completions could not be scored")


def chosen(name: str, overrides: list[str]) -> tuple[Config, Policy]:
    """The configuration and the policy that a path or a name stands for."""
    path = Path(name)
    checkpoint = path if (path / STATE).is_file() else None
    folder = path.parent.parent if checkpoint else path.parent if (path.parent / "run.json").is_file() else path
    if read_record(folder) is None:
        if not any(each.startswith("task=") for each in overrides):
            raise UserError(f"'{name}' is not a run, so its task is unknown; add task=NAME.")
        model = [] if any(each.startswith("model=") for each in overrides) else ["model=hf"]
        config = compose([*model, f"model.name='{name}'", "tuned=none", "sft.steps=0", *overrides])
        return config, usable(config.model, config, prepare(config).device)
    config = of_run(folder, overrides)
    phases = prepare(config)
    if checkpoint:
        if damage := damage_of(checkpoint):
            raise UserError(f"the checkpoint '{checkpoint}' is damaged ({damage}); choose another.")
        return config, load_checkpoint(checkpoint, start(config, phases).learner).actor
    if not (folder / "actor").is_dir():
        why = "its run has not finished" if config.checkpoint.actor else "checkpoint.actor is false"
        raise UserError(f"'{folder}' has no actor, because {why}; name one of its checkpoints.")
    model_ = replace(config.model, name=str(folder / "actor"), lora=Lora())
    config = replace(config, model=model_, sft=Sft())
    return config, usable(config.model, config, phases.device)


def of_run(folder: Path, overrides: list[str]) -> Config:
    """The configuration of the run in a folder, with other values, and with a task that `task=NAME` chooses.

    Raises UserError where the run's own task names code that the command line does not name.
    """
    record = read_record(folder)
    assert record is not None
    saved = read_config(folder)
    groups = {key: each for each in overrides if "." not in (key := each.split("=")[0])}
    parsed = OverridesParser.create().parse_overrides([each for each in overrides if each not in groups.values()])
    composed = plain(compose(["tuned=none", *overrides])) if groups else {}
    for key in groups:
        if key not in composed:
            raise UserError(unknown("key", key, composed))
        saved[key] = composed[key]
    # the verifier judges; functions of the user's are not asked, nor imported
    for key, without in (("reward", {"functions": {"verifier": 1.0}, "process": {}}), ("measure", {"functions": []})):
        if isinstance(saved.get(key), dict):
            saved[key] |= without
    refuse_code({key: value for key, value in saved.items() if key not in groups}, parsed, folder)
    node = restored(saved)
    for override in parsed:
        apply(node, override, record)
    config: Any = OmegaConf.to_object(node)
    validate(config)
    return config  # type: ignore[no-any-return]
