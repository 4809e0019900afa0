"""Prediction against measurement for every method on two models: the table of docs/memory.md."""

from __future__ import annotations

import argparse

import pandas as pd
from rich.console import Console
from rich.progress import track

from bakeoff.config import Config, register
from bakeoff.device import choose_device, device_name
from bakeoff.loop import update_once
from bakeoff.paths import CONF
from bakeoff.predict import predict
from bakeoff.validation import compose
from benchmarks.start import endless, started, with_device

PHASES = ("rollout", "experience", "actor_update", "fisher_product", "critic_update", "behaviour_kl", "measure")
BATCH = ["tuned=none", "sft.steps=0", "threads=1", "batch.prompts=16", "batch.group_size=4"]
# tied embeddings and as many key heads as heads; then neither, and a vocabulary in which logits count
QWEN = {
    "model_type": "qwen2",
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 1500,
    "tie_word_embeddings": "false",
}
MODELS: dict[str, list[str]] = {"tiny": [], "Qwen2": [f"++model.architecture.{k}={v}" for k, v in QWEN.items()]}


def measured(config: Config) -> dict[str, float]:
    """Peaks in MB by phase of the second of two real updates, which has optimiser state."""
    loop = endless(started(config))
    for _ in range(2):
        with loop.traced():
            peaks = update_once(loop).measured.peaks
    return {phase: peaks[phase].allocated / 1e6 for phase in PHASES if phase in peaks}


def check(method: str, device: str, settings: list[str]) -> dict[str, float | str]:
    """Largest measured peak of a method, its prediction, and the largest error of any of its phases."""
    overrides = [f"algorithm={method}", f"device={device}", *BATCH, *settings]
    config = compose(overrides)
    if config.algorithm.critic.warmup_updates:  # the actor learns only after it
        config = compose([*overrides, "algorithm.critic.warmup_updates=0"])
    real = measured(config)
    peaks = predict(config).peaks
    predicted = {phase: peaks[phase].allocated / 1e6 for phase in real}
    largest = max(real, key=lambda phase: real[phase])
    worst = max(real, key=lambda phase: abs(predicted[phase] / real[phase] - 1))
    return {
        "method": f"`{method}`",
        "largest peak in": largest.replace("_", " "),
        "measured (MB)": f"{real[largest]:.2f}",
        "predicted (MB)": f"{predicted[largest]:.2f}",
        "error": f"{predicted[largest] / real[largest] - 1:+.1%}",
        "largest error of a phase": f"{predicted[worst] / real[worst] - 1:+.1%} ({worst.replace('_', ' ')})",
    }


def main() -> None:
    """Prints a table for each model, as Markdown."""
    device: str = with_device(argparse.ArgumentParser(description=__doc__)).device
    register()
    methods = sorted(path.stem for path in (CONF / "algorithm").glob("*.yaml"))
    for model, settings in MODELS.items():
        rows = [
            check(method, device, settings)
            for method in track(methods, description=model, console=Console(stderr=True), transient=True)
        ]
        print(f"{model} on {device_name(choose_device(device))}, 16 prompts × 4 completions of sort-10:\n")
        print(pd.DataFrame(rows).to_markdown(index=False), end="\n\n")


if __name__ == "__main__":
    main()
