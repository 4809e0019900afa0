"""Settings that save memory, by prediction."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from operator import itemgetter

from bakeoff.algorithm.critic import Adapter, Separate
from bakeoff.config import Config
from bakeoff.model.config import Lora, Precision
from bakeoff.predict import predict
from bakeoff.validation import impossible


def savings(config: Config) -> list[tuple[str, int]]:
    """Settings that save memory, each with the predicted peak in bytes that it alone would lead to; lowest first.

    Those that a run would refuse are left out.
    """
    now = predict(config).peak
    peaks = ((setting, predict(changed).peak) for setting, changed in cheaper(config) if not any(impossible(changed)))
    return sorted(((setting, peak) for setting, peak in peaks if peak < now), key=itemgetter(1))


def cheaper(config: Config) -> Iterator[tuple[str, Config]]:
    """The configuration with one setting changed to save memory, and that setting as a user types it."""
    algorithm, model = config.algorithm, config.model
    completion = config.lengths.completion or config.task.max_tokens
    read = config.micro_tokens or config.batch.sequences * completion
    if read > completion:  # a pass reads at least one sequence
        fewer = max(read // 4, 1)
        yield f"micro_tokens={fewer}", replace(config, micro_tokens=fewer)
    if not model.gradient_checkpointing:
        recomputing = replace(model, gradient_checkpointing=True)
        yield "model.gradient_checkpointing=true", replace(config, model=recomputing)
    if model.precision is Precision.bfloat16:
        stored = replace(model, precision=Precision.bfloat16_weights)
        yield "model.precision=bfloat16_weights", replace(config, model=stored)
    if not config.logits_mb or config.logits_mb > 16:
        yield "logits_mb=16", replace(config, logits_mb=16)
    if not config.offload:
        yield "offload=true", replace(config, offload=True)
    if not model.lora.rank and not isinstance(algorithm.critic, Adapter):
        yield "model.lora.rank=16", replace(config, model=replace(model, lora=Lora(16)))
    if isinstance(algorithm.critic, Separate):
        critic = Adapter(optimizer=algorithm.critic.optimizer, head_std=algorithm.critic.head_std)
        yield "algorithm/critic=adapter", replace(config, algorithm=replace(algorithm, critic=critic))
