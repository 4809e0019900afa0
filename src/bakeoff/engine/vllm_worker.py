"""Worker extension of a vLLM server for `engine=vllm_server`: reports settings, loads weights, clears the cache."""

from __future__ import annotations

from typing import Any

from safetensors import safe_open
from torch import nn


class Weights:
    """Methods for each worker of `vllm serve MODEL --worker-extension-cls bakeoff.engine.vllm_worker.Weights`."""

    vllm_config: Any  # this and the next three are the worker's, which inherits from this class
    model_runner: Any
    reload_weights: Any
    get_model: Any

    def bakeoff_settings(self) -> dict[str, Any]:
        """The settings that an engine has to know."""
        model = self.vllm_config.model_config
        return {
            "logprobs_mode": str(model.logprobs_mode),
            "max_model_len": int(model.max_model_len),
            "dtype": str(model.dtype).removeprefix("torch."),
        }

    def bakeoff_take(self, path: str) -> None:
        """Takes the weights in a file of safetensors, by the names of a checkpoint."""
        with safe_open(path, framework="pt") as file:
            self.reload_weights(weights_iterator=((name, file.get_tensor(name)) for name in file.keys()))  # noqa: SIM118  it is no dict
        renew_heads(self.get_model())

    def bakeoff_clear(self) -> None:
        """Clears all keys and values: NaN would reach what is computed beside it."""
        for cache in self.model_runner.kv_caches:
            cache.zero_()


def renew_heads(model: nn.Module) -> None:
    """Packs the output embeddings again: vLLM keeps a packed copy on a CPU, and of a tied one it does not renew it."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for layer in model.modules():
        if isinstance(layer, ParallelLMHead):
            layer.quant_method.process_weights_after_loading(layer)
