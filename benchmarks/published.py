"""Predicted memory beside published tables, and what dropping the critic saves: the tables of docs/published.md."""

from __future__ import annotations

import math
import shlex
import sys
from dataclasses import dataclass

import joblib
import pandas as pd

from bakeoff.config import register
from bakeoff.measure import TRAINING
from bakeoff.measure.ledger import Cells
from bakeoff.predict import predict
from bakeoff.validation import compose

Overrides = list[str]
Peaks = dict[str, Cells]  # phase → bytes by role and kind at its peak

GPU = 80  # GB of an A100 and of an H100
DEPTHS = (2, 4)  # layers of the models whose predictions are extended to the whole model
PASSES = ("activations", "logits", "kv_cache", "other")  # all that grows with the batch
LLAMA_7B = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}
LLAMA = ["model=llama3_1_8b", *(f"++model.architecture.{key}={value}" for key, value in LLAMA_7B.items())]
LLAMA_PARAMETERS = 6.738  # billions
CRITIC = ["algorithm.critic.optimizer.epochs=1", "algorithm.critic.optimizer.minibatches=1"]
METHODS = {
    "PPO": ["algorithm=ppo", *CRITIC],
    "ReMax": ["algorithm=remax"],
    "GRPO": ["algorithm=grpo"],
}
ONE_STEP = ["tuned=none", "algorithm.optimizer.epochs=1", "algorithm.optimizer.minibatches=1"]
# model, group and tokens of a completion
SAVINGS = [
    ("qwen2_5_0_5b", 8, 512),
    ("qwen2_5_0_5b", 8, 8192),
    ("qwen2_5_1_5b", 8, 512),
    ("qwen2_5_3b", 8, 512),
    ("qwen2_5_7b", 8, 512),
    ("qwen2_5_7b", 8, 8192),
    ("qwen2_5_7b", 64, 8192),
]
CHECKPOINTING = "model.gradient_checkpointing=true"


@dataclass
class Section:
    """A comparison: its title, the overrides of one of its predictions as an example, and its tables."""

    title: str
    example: Overrides
    tables: list[pd.DataFrame]

    def __str__(self) -> str:
        tables = [table.to_markdown(index=False, disable_numparse=True) for table in self.tables]
        return "\n\n".join(
            [f"## {self.title}", f"    bakeoff-predict task=largest {shlex.join(self.example)}", *tables]
        )


def predicted(overrides: Overrides) -> Peaks:
    """The cells of every phase of training."""
    register()
    peaks = predict(compose(["mode=predict", "task=largest", *overrides])).peaks
    return {phase: dict(peak.cells) for phase, peak in peaks.items() if phase in TRAINING}


def all_predicted(wanted: list[Overrides]) -> list[Peaks]:
    """The predictions of several configurations, on all cores."""
    print(f"{len(wanted)} predictions", file=sys.stderr, flush=True)
    return list(joblib.Parallel(-1, verbose=5)(joblib.delayed(predicted)(each) for each in wanted))


def gigabytes(cells: Cells, *kinds: str) -> float:
    """The sum of the cells in GB, of these kinds where any are named."""
    return sum(size for label, size in cells.items() if not kinds or label.kind in kinds) / 1e9


def peak(peaks: Peaks) -> float:
    """The largest peak of a phase, in GB."""
    return max(gigabytes(cells) for cells in peaks.values())


def per_sequence(few: Peaks, many: Peaks, sizes: tuple[int, int], phase: str) -> float:
    """GB that one more sequence adds to the peak of a phase."""
    return (gigabytes(many[phase], *PASSES) - gigabytes(few[phase], *PASSES)) / (sizes[1] - sizes[0])


def largest_batch(few: Peaks, many: Peaks, sizes: tuple[int, int], states: float | None = None) -> int:
    """The largest batch in 80 GB, by a straight line through the predictions for two sizes, in each phase.

    `states` are the GB of weights, gradients and optimiser, where they are placed otherwise than in the prediction.
    """
    batches = []
    for phase, cells in few.items():
        slope = per_sequence(few, many, sizes, phase)
        fixed = gigabytes(cells) if states is None else gigabytes(cells, *PASSES) + states
        batches.append(sizes[0] + (GPU - fixed) / slope if slope > 1e-6 else math.inf)
    return max(math.floor(min(batches)), 0)


def zero_2(models: int, gpus: int, offload: bool) -> float:
    """GB a GPU that trained models of 7B need under DeepSpeed's ZeRO-2.

    A bfloat16 weight is on every GPU; its gradient, float32 copy and two moments (14 bytes) are divided among the
    GPUs, or wait in the host's memory.
    """
    return models * LLAMA_PARAMETERS * (2 + (0 if offload else 14 / gpus))


def remax() -> Section:
    """ReMax's README, Llama-2-7B: the largest batch of PPO and ReMax; then what a sequence and the critic cost.

    The passes of PPO's actor are ReMax's, and its critic's are no larger: batches of both are those of ReMax's passes.
    """
    sizes = (2, 10)
    variants = {"as here": [], "logits whole, eager attention": ["logits_mb=1000000", "model.attention=eager"]}
    base = [*LLAMA, *ONE_STEP, CHECKPOINTING, "reward=learned", "batch.group_size=1"]
    base += ["lengths.prompt=256", "lengths.completion=256"]
    passes = [[*base, *METHODS["ReMax"], *own, f"batch.prompts={size}"] for own in variants.values() for size in sizes]
    *made, ppo = all_predicted([*passes, [*base, *METHODS["PPO"], f"batch.prompts={sizes[1]}"]])
    pairs = dict(zip(variants, [(made[0], made[1]), (made[2], made[3])], strict=True))
    published = {
        (4, False, "PPO"): "out of memory",
        (4, False, "ReMax"): "26",
        (4, True, "PPO"): "30",
        (4, True, "ReMax"): "40",
        (1, True, "PPO"): "32",
        (1, True, "ReMax"): "42",
    }
    batches = []
    for (gpus, offload, method), batch in published.items():
        states = zero_2(2 if method == "PPO" else 1, gpus, offload)
        row = {"GPUs": gpus, "offload": offload, "method": method, "states under ZeRO-2 (GB)": f"{states:.1f}"}
        for name, (few, many) in pairs.items():
            row[f"predicted, {name}"] = str(largest_batch(few, many, sizes, states))
        batches.append(row | {"published, a GPU": batch})
    costs = {
        f"GB that a sequence adds to the {phase.replace('_', ' ')}, {name}": f"{per_sequence(*pair, sizes, phase):.2f}"
        for name, pair in pairs.items()
        for phase in ("rollout", "actor_update")
    }
    before, after = peak(ppo), peak(made[1])
    costs["PPO → ReMax on one device (GB)"] = f"{before:.1f} → {after:.1f}: {1 - after / before:.0%} saved"
    before, after = peak(trained(ppo)), peak(trained(made[1]))
    costs["the same without reference and reward model"] = f"{before:.1f} → {after:.1f}: {1 - after / before:.0%} saved"
    tables = [pd.DataFrame(batches), pd.DataFrame({"quantity": costs.keys(), "predicted": costs.values()})]
    return Section("ReMax: PPO and ReMax on Llama-2-7B", passes[1], tables)


def trained(peaks: Peaks) -> Peaks:
    """The cells without those of the models that are never trained."""
    frozen = ("reference", "reward_model")
    return {
        phase: {label: size for label, size in cells.items() if label.role not in frozen}
        for phase, cells in peaks.items()
    }


def hydra() -> Section:
    """Hydra-RLHF's Table 1: Llama-7B, LoRA of rank 128."""
    lora, shared, adapter = "model.lora.rank=128", "algorithm/critic=shared", "algorithm/critic=adapter"
    rows = {
        ("PPO", "220 (their estimate)"): [*METHODS["PPO"], "reward=learned"],
        ("LoRA-PPO", "68.0"): [*METHODS["PPO"], adapter, lora, "reward=learned"],
        ("Hydra-PPO", "71.1"): [*METHODS["PPO"], adapter, lora],
        ("J-Hydra-PPO", "67.9"): ["algorithm=ppo", shared, lora],
    }
    base = [*LLAMA, *ONE_STEP, CHECKPOINTING, "batch.prompts=4", "batch.group_size=1", "micro_tokens=4096"]
    base += ["lengths.prompt=512", "lengths.completion=512"]
    wanted = [[*base, *own] for own in rows.values()]
    made = all_predicted(wanted)
    table = []
    for (name, published), own, peaks in zip(rows, rows.values(), made, strict=True):
        cells = max(peaks.values(), key=gigabytes)
        weights = gigabytes(cells, "parameters")
        table.append(
            {
                "theirs": name,
                "ours": " ".join(each for each in own if each not in CRITIC),
                "predicted (GB)": f"{gigabytes(cells):.1f}",
                "of it weights": f"{weights:.1f}",
                "published (GB)": published,
            }
        )
    return Section("Hydra-RLHF: PPO with LoRA on Llama-7B", wanted[2], [pd.DataFrame(table)])


def verl() -> Section:
    """verl's device_tuning page: the largest batch of GRPO-LoRA on one H100."""
    published = {"qwen2_5_0_5b": 116, "qwen2_5_1_5b": 128, "qwen2_5_3b": 62, "qwen2_5_7b": 16}
    sizes = (10, 40)
    base = [*ONE_STEP, CHECKPOINTING, *METHODS["GRPO"], "model.lora.rank=32", "offload=true", "batch.group_size=5"]
    base += ["lengths.prompt=512", "lengths.completion=1024", "logits_mb=1000000"]
    wanted = [
        [*base, f"model={model}", f"batch.prompts={size}", f"micro_tokens={size * 1536}"]
        for model in published
        for size in sizes
    ]
    made = all_predicted(wanted)
    rows = []
    for (model, batch), few, many in zip(published.items(), made[::2], made[1::2], strict=True):
        slopes = {phase: per_sequence(few, many, sizes, phase) for phase in ("rollout", "actor_update")}
        rows.append(
            {
                "model": model,
                "GB that a prompt adds to the rollout": f"{slopes['rollout']:.2f}",
                "GB that a prompt adds to the update": f"{slopes['actor_update']:.2f}",
                "predicted": largest_batch(few, many, sizes),
                "published": batch,
            }
        )
    return Section("verl: GRPO with LoRA on one H100", wanted[1], [pd.DataFrame(rows)])


def at_depth(shallow: list[Peaks], layers: int) -> Peaks:
    """The cells of a model of that many layers, by a straight line through those of two models with DEPTHS layers.

    Layers are alike, so that the bytes at a moment of a phase lie on a straight line over their number. Where the peak
    of deeper models is at another moment, the line is too low.
    """
    few, many = shallow
    share = (layers - DEPTHS[0]) / (DEPTHS[1] - DEPTHS[0])
    peaks: Peaks = {}
    for phase, more in many.items():
        less = few[phase]
        labels = less.keys() | more.keys()
        peaks[phase] = {
            each: round(less.get(each, 0) + share * (more.get(each, 0) - less.get(each, 0))) for each in labels
        }
    return peaks


def saved() -> Section:
    """The share of PPO's largest peak that GRPO saves, by size, group, length and reference."""
    base = [*ONE_STEP, CHECKPOINTING, "batch.prompts=8", "micro_tokens=16384", "logits_mb=1024"]
    wanted = {
        (model, group, length, method, depth): [
            *base,
            *METHODS[method],
            f"model={model}",
            f"++model.architecture.num_hidden_layers={depth}",
            f"batch.group_size={group}",
            "lengths.prompt=512",
            f"lengths.completion={length}",
        ]
        for model, group, length in SAVINGS
        for method in ("PPO", "GRPO")
        for depth in DEPTHS
    }
    made = dict(zip(wanted, all_predicted(list(wanted.values())), strict=True))
    register()
    rows = []
    for model, group, length in SAVINGS:
        layers = compose([f"model={model}"]).model.architecture["num_hidden_layers"]
        ppo, grpo = (
            at_depth([made[model, group, length, method, depth] for depth in DEPTHS], layers)
            for method in ("PPO", "GRPO")
        )
        before, after, without = peak(ppo), peak(grpo), peak(trained(grpo))
        rows.append(
            {
                "model": model,
                "group": str(group),
                "prompt + completion": f"512 + {length}",
                "PPO (GB)": f"{before:.1f}",
                "GRPO (GB)": f"{after:.1f}",
                "saved": f"{1 - after / before:.0%}",
                "saved without GRPO's reference": f"{1 - without / before:.0%}",
            }
        )
    return Section("What dropping the critic saves", next(iter(wanted.values())), [pd.DataFrame(rows)])


def main() -> None:
    """Prints the sections as Markdown."""
    for section in (remax, hydra, verl, saved):
        print(section(), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
