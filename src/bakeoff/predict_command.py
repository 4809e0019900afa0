"""The command `bakeoff-predict`: memory, hours and price of a configuration, and the largest that fits."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import hydra
import joblib
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bakeoff.arms import arms_of, overrides_of
from bakeoff.config import register
from bakeoff.errors import UserError, fail, refused
from bakeoff.paths import CONF
from bakeoff.predict import UNKNOWN_LENGTH, predict
from bakeoff.progress import plain_table
from bakeoff.validation import compose

USAGE = """bakeoff-predict [key=value …]

Predicts the memory of every phase by role and kind, and with hardware=NAME its time, the hours of the budget and their
price: the run's own code on tensors without values. For example:

  bakeoff-predict model=qwen2_5_7b algorithm=grpo hardware=h100 price=2.5 budget.limit=25600 micro_tokens=4096
  bakeoff-predict model=qwen2_5_7b algorithm=grpo micro_tokens=4096 lengths.prompt=512 lengths.completion=1024
  bakeoff-predict model=qwen2_5_7b algorithm=ppo algorithm/critic=adapter model.lora.rank=16 tuned=none
  bakeoff-predict --fit model=qwen2_5_7b hardware=h100     also the largest group and the longest completion there
  bakeoff-predict --fits 80 micro_tokens=4096 arm=grpo_lora,ppo_lora   what fits in 80 GB, by arm
  bakeoff-predict --fits 24 model=llama3_2_1b algorithm=ppo,grpo,rloo  and around which model

It takes the keys of `bakeoff`; with --fits, arms are those of the study `memory`. Lengths are the task's where the
model's tokenizer is on this machine, else 512.
"""
# from small to large
MODELS = [
    *("smollm2_135m", "smollm2_360m", "qwen2_5_0_5b", "llama3_2_1b", "qwen2_5_1_5b"),
    *("qwen2_5_3b", "qwen2_5_7b", "qwen2_5_14b", "qwen2_5_32b", "llama3_1_70b"),
]
GROUPS = [str(2**power) for power in range(1, 9)]
COMPLETIONS = [str(2**power) for power in range(6, 15)]


def largest(values: Sequence[str], fits: Callable[[str], bool]) -> str:
    """The last of ascending values that fits, by bisection; `none` where not even the first does."""
    low, high = -1, len(values)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(values[middle]) else (low, middle)
    return values[low] if low >= 0 else "none"


def what_fits(name: str, own: list[str], model: str, gigabytes: float, overrides: list[str]) -> list[str]:
    """A row of the table: the largest model, and around `model` the largest group and the longest completion.

    `name` is the row's, `own` are the overrides of its arm or method.
    """
    register()

    def fits(override: str) -> bool:
        settings = ["mode=predict", f"model={model}", "task=largest", *overrides, *own, override]
        try:
            predict(compose(settings), gigabytes * 1e9)
        except torch.OutOfMemoryError:
            return False
        return True

    return [
        name,
        largest(MODELS, lambda name: fits(f"model={name}")),
        largest(GROUPS, lambda size: fits(f"batch.group_size={size}")),
        largest(COMPLETIONS, lambda length: fits(f"lengths.completion={length}")),
    ]


def largest_of(overrides: list[str]) -> str:
    """The largest group and the longest completion of a configuration that fit on its hardware, all else as it is."""
    config = compose(["mode=predict", *overrides])
    room = config.hardware.memory_gb * 1e9
    if not room:
        raise UserError("--fit needs hardware=NAME, a device with a stated memory; choose one of conf/hardware.")

    def fits(override: str) -> bool:
        rest = [each for each in overrides if each.split("=")[0] != override.split("=")[0]]
        try:
            predict(compose(["mode=predict", *rest, override]), room)
        except torch.OutOfMemoryError:
            return False
        return True

    group = largest(GROUPS, lambda size: fits(f"batch.group_size={size}"))
    length = largest(COMPLETIONS, lambda tokens: fits(f"lengths.completion={tokens}"))
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
        f"completions each of {completion}, micro_tokens {config.micro_tokens}, {model} unless a column says otherwise"
    )
    table = plain_table(title, (key, "largest model", "largest group", "longest completion"))
    chosen = {value: f"{key}={value}" for value in values.split(",")}
    own = {name: overrides_of({key: each}, arms) if key == "arm" else [each] for name, each in chosen.items()}
    jobs = (joblib.delayed(what_fits)(name, each, model, gigabytes, rest) for name, each in own.items())
    with Progress(console=console, transient=True) as progress:
        for row in progress.track(joblib.Parallel(-1, return_as="generator")(jobs), len(own), description="predicting"):
            table.add_row(*row)
    return table


def main() -> None:
    """Prints the ledger, as a run of its own in MLflow, or what fits; exit code 2 for a user's mistake."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(USAGE)
        return
    parser = argparse.ArgumentParser(prog="bakeoff-predict", add_help=False)
    parser.add_argument("--fits", type=float, metavar="GB", default=0.0)
    parser.add_argument("--fit", action="store_true")
    arguments, overrides = parser.parse_known_args()
    if not arguments.fits:
        from bakeoff.__main__ import main as bakeoff

        sys.argv[1:] = ["mode=predict", *overrides]
        bakeoff()
        if arguments.fit:
            try:
                with refused():
                    register()
                    Console().print(largest_of(overrides), highlight=False, soft_wrap=True)
            except UserError as error:
                fail(error, "bakeoff-predict")
        return
    register()
    console = Console()
    try:
        with refused():
            console.print(table_of_what_fits(arguments.fits, overrides, console))
    except UserError as error:
        fail(error, "bakeoff-predict")


if __name__ == "__main__":
    main()
