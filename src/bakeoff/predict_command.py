"""The command `bakeoff-predict`: memory, hours and price of configurations, and the largest that fits."""

from __future__ import annotations

import argparse
from bisect import bisect_left
from collections.abc import Callable, Sequence

import hydra
import joblib
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bakeoff.arguments import add_config_dir, read_arguments
from bakeoff.arms import Job, arms_of, grid, job_names, overrides_of
from bakeoff.attribution import ROLES
from bakeoff.command import command
from bakeoff.config import Config, register
from bakeoff.cost import cost_of
from bakeoff.device import GPU, logits_bound
from bakeoff.early import check_overrides
from bakeoff.errors import UserError, answering
from bakeoff.launcher.local import shield_processes
from bakeoff.measure import TRAINING
from bakeoff.paths import CONF
from bakeoff.predict import UNKNOWN_LENGTH, Prediction, predict, sizes_of
from bakeoff.terminal import megabytes, plain_table
from bakeoff.validation import compose

ABOUT = """Predicts the memory of every phase by role and kind, and with hardware=NAME its time, the hours of the
budget and their price: the run's own code on tensors without values. Several methods, or values
of another key, are shown side by side."""
EXAMPLES = """for example:
  bakeoff-predict algorithm=ppo,grpo model=qwen2_5_7b hardware=h100 price=2.5 micro_tokens=4096
  bakeoff-predict model=qwen2_5_7b algorithm=grpo micro_tokens=4096 lengths.prompt=512 lengths.completion=1024
  bakeoff-predict model=qwen2_5_7b algorithm=ppo algorithm/critic=adapter model.lora.rank=16 tuned=none
  bakeoff-predict model=qwen2_5_14b processes=8 shard=true hardware=h100   by each of eight processes
  bakeoff-predict --largest model=qwen2_5_7b hardware=h100   also the largest group and the longest completion there
  bakeoff-predict --fits 80 micro_tokens=4096 arm=grpo_lora,ppo_lora   what fits in 80 GB, by arm
  bakeoff-predict --fits 24 model=llama3_2_1b algorithm=ppo,grpo,rloo  and around which model

With --fits, arms are those of the study `memory`. Lengths are the task's where the model's tokenizer is on this
machine, else 512."""
# from small to large
MODELS = [
    *("smollm2_135m", "smollm2_360m", "qwen2_5_0_5b", "llama3_2_1b", "qwen2_5_1_5b"),
    *("qwen2_5_3b", "qwen2_5_7b", "qwen2_5_14b", "qwen2_5_32b", "llama3_1_70b"),
]
FACTS = ("peak", "at the largest", "seconds", "in all")  # heads of a comparison, in their order
GROUPS = [str(2**power) for power in range(1, 9)]
COMPLETIONS = [str(2**power) for power in range(6, 15)]


def largest(values: Sequence[str], fits: Callable[[str], bool]) -> str:
    """The last of ascending values that fits, by bisection; `none` where not even the first does."""
    count = bisect_left(values, True, key=lambda value: not fits(value))
    return values[count - 1] if count else "none"


def fits(overrides: list[str], room: float) -> bool:
    """Whether the predicted peak of a configuration is at most `room` bytes, of a GPU unless `hardware` is named."""
    config = compose(["mode=predict", *overrides])
    if not config.hardware.name:
        config.logits_mb = logits_bound(config.logits_mb, GPU)
    try:
        predict(config, room)
    except torch.OutOfMemoryError:
        return False
    return True


def largest_sizes(overrides: list[str], room: float) -> tuple[str, str]:
    """The largest group, and the longest completion, that fit in `room` bytes, all else as it is."""
    group = largest(GROUPS, lambda size: fits([*overrides, f"batch.group_size={size}"], room))
    return group, largest(COMPLETIONS, lambda tokens: fits([*overrides, f"lengths.completion={tokens}"], room))


def what_fits(name: str, own: list[str], model: str, gigabytes: float, overrides: list[str]) -> list[str]:
    """A row of the table: the largest model, and around `model` the largest group and the longest completion.

    `name` is the name of the row, `own` are the overrides of its arm or method.
    """
    register()
    room, settings = gigabytes * 1e9, [f"model={model}", "task=largest", *overrides, *own]
    return [
        name,
        largest(MODELS, lambda each: fits([*settings, f"model={each}"], room)),
        *largest_sizes(settings, room),
    ]


def jobs_side_by_side(overrides: list[str]) -> list[Job]:
    """One configuration for each combination of the values that keys have on the command line."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        return grid(OmegaConf.create({"arms": {}, "params": {}}), overrides, loader)


def side_by_side(jobs: list[Job], console: Console) -> Table:
    """A column for each configuration: peaks by phase, what roles hold at the largest, and seconds, hours, price."""
    configs = [compose(["mode=predict", *job.overrides]) for job in jobs]
    with Progress(console=console, transient=True) as progress:
        found = [predict(config) for config in progress.track(configs, description="predicting")]
    columns = [facts(*each) for each in zip(configs, found, strict=True)]
    titles = dict.fromkeys(sizes_of(*each) for each in zip(configs, found, strict=True))
    table = plain_table("; ".join(titles), ("", ""), job_names(jobs))
    every = dict.fromkeys(fact for column in sorted(columns, key=len, reverse=True) for fact in column)
    last = ""
    for head, of in sorted(every, key=lambda fact: FACTS.index(fact[0])):
        if head != last:
            table.add_section()
        table.add_row("" if head == last else head, of, *(column.get((head, of), "") for column in columns))
        last = head
    return table


def facts(config: Config, prediction: Prediction) -> dict[tuple[str, str], str]:
    """The predicted values of a configuration as text, by one of FACTS and the name of a phase, a role or a sum."""
    peaks = prediction.peaks
    highest = max((peaks[phase] for phase in TRAINING if phase in peaks), key=lambda peak: peak.allocated)
    roles = {role: sum(size for label, size in highest.cells.items() if label.role == role) for role in ROLES}
    found = {("peak", phase.replace("_", " ")): megabytes(peak.allocated) for phase, peak in peaks.items()}
    found |= {("at the largest", role.replace("_", " ")): megabytes(size) for role, size in roles.items() if size}
    room = config.hardware.memory_gb * 1e9
    if room:
        found["in all", f"fits {config.hardware.name}"] = "yes" if prediction.peak <= room else "no"
    if config.hardware.name:
        cost = cost_of(config, prediction)
        found |= {("seconds", phase.replace("_", " ")): f"{value:,.3f}" for phase, value in cost.seconds.items()}
        found["in all", "rates of the device"] = config.hardware.trust
        found["in all", "seconds per update"] = f"{cost.seconds_per_update:,.3f}"
        found["in all", "updates"] = f"{cost.updates:,}"
        found["in all", "hours"] = f"{cost.hours:,.3g}"
        found |= {("in all", "price"): f"{cost.price:,.2f}"} if config.price else {}
    return found


def largest_on_hardware(overrides: list[str]) -> str:
    """The largest group and the longest completion of a configuration that fit on its hardware, all else as it is."""
    config = compose(["mode=predict", *overrides])
    room = config.hardware.memory_gb * 1e9
    if not room:
        raise UserError("--largest needs hardware=NAME, a device with a stated memory; choose one of conf/hardware.")
    group, length = largest_sizes(overrides, room)
    return (
        f"On {config.hardware.name} ({config.hardware.memory_gb:g} GB) the largest powers of two that fit, with all "
        f"else unchanged, are batch.group_size={group}, or completions of {length} tokens."
    )


def table_of_what_fits(gigabytes: float, overrides: list[str], console: Console) -> Table:
    """A row for each arm or method; a row takes minutes, so all cores work on them."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        study = hydra.compose("config", overrides=["sweeps=memory"], return_hydra_config=True)
    arms = arms_of(study.hydra.sweeper)
    swept = next((o for o in overrides if o.split("=")[0] in ("arm", "algorithm")), f"arm={','.join(arms)}")
    model = next((o.removeprefix("model=") for o in overrides if o.startswith("model=")), "qwen2_5_1_5b")
    rest = [o for o in overrides if o != swept and not o.startswith("model=")]
    key, _, values = swept.partition("=")
    config = compose(["mode=predict", f"model={model}", "task=largest", *rest])
    prompt, completion = config.lengths.prompt or UNKNOWN_LENGTH, config.lengths.completion or UNKNOWN_LENGTH
    title = (
        f"what fits in {gigabytes:g} GB: {config.batch.prompts} prompts of {prompt} tokens, {config.batch.group_size} "
        f"completions each of {completion} tokens, micro_tokens {config.micro_tokens}, {model} unless a column says "
        "otherwise"
    )
    table = plain_table(title, (key, "largest model", "largest group", "longest completion"))
    chosen = {value: f"{key}={value}" for value in values.split(",")}
    own = {name: overrides_of({key: each}, arms) if key == "arm" else [each] for name, each in chosen.items()}
    shield_processes()
    jobs = (joblib.delayed(what_fits)(name, each, model, gigabytes, rest) for name, each in own.items())
    with Progress(console=console, transient=True) as progress:
        for row in progress.track(joblib.Parallel(-1, return_as="generator")(jobs), len(own), description="predicting"):
            table.add_row(*row)
    return table


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The arguments, those of this process by default; raises UserError for a mistake in them."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("bakeoff-predict", description=ABOUT, epilog=EXAMPLES, formatter_class=layout)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="keys of `bakeoff`")
    parser.add_argument(
        "--fits", type=float, metavar="GB", default=0.0, help="print what fits in this memory, by arm or method"
    )
    parser.add_argument(
        "--largest", action="store_true", help="also print the largest group and completion that fit hardware=NAME"
    )
    add_config_dir(parser)
    found = read_arguments(parser, arguments)
    if found.largest and any(each.startswith("sweeps=") for each in found.overrides):
        raise UserError("--largest needs configurations side by side, as algorithm=ppo,grpo; leave sweeps= out.")
    return found


def check(arguments: list[str]) -> None:
    """Raises UserError for what can be refused before the libraries of a run are here; see early.py."""
    overrides = [each for each in parse(arguments).overrides if not each.startswith("arm=")]
    check_overrides(["mode=predict", *overrides], sweep=True)


def main() -> None:
    """Prints the ledger, as a run of its own in MLflow, or a comparison, or what fits; exit code 2 for a mistake."""
    console = Console()
    with answering("bakeoff-predict"):
        arguments = parse()
        register()
        if arguments.fits:
            console.print(table_of_what_fits(arguments.fits, arguments.overrides, console))
            return
        study = any(each.startswith("sweeps=") for each in arguments.overrides)
        jobs = [] if study else jobs_side_by_side(arguments.overrides)
        if len(jobs) > 1:
            console.print(side_by_side(jobs, console))
        else:
            command(["mode=predict", *arguments.overrides])
        for name, job in zip(job_names(jobs), jobs, strict=True) if arguments.largest else ():
            console.print(f"{name}: {largest_on_hardware(job.overrides)}", highlight=False, soft_wrap=True)
