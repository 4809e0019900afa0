"""Weights in bfloat16, and float32 masters of those that are trained: Micikevicius et al. 2018 (arXiv:1710.03740) §3.1.

Passes read weights of two bytes. An optimiser trains masters: a step of a thousandth of a weight would be lost in
bfloat16, which has eight bits. Gradients of micro-batches are added up in float32 too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bakeoff.attribution import attributed

Masters = dict[int, tuple[Tensor, Tensor]]  # `id` of a weight → the weight and its master


def to_bfloat16(network: PreTrainedModel) -> None:
    """Stores the network's weights in bfloat16, but for its embeddings: logits need the precision of their head."""
    kept = {id(p) for module in embeddings(network) for p in module.parameters()}
    for parameter in network.parameters():
        if id(parameter) not in kept:
            parameter.data = parameter.data.to(torch.bfloat16)
    activations_to_bfloat16(network)


def activations_to_bfloat16(network: PreTrainedModel) -> None:
    """Casts the input embedding's output, so that later activations are in bfloat16."""
    network.get_input_embeddings().register_forward_hook(_cast)


def embeddings(network: PreTrainedModel) -> list[nn.Module]:
    """The input embedding, and the output embedding where there is one."""
    return [each for each in (network.get_input_embeddings(), network.get_output_embeddings()) if each is not None]


def _cast(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    return output.to(torch.bfloat16)


def make_masters(role: str, weights: Iterable[Tensor]) -> Masters:
    """A float32 copy of every weight in bfloat16; its gradient collects those of the weight."""
    masters = {}
    for weight in weights:
        if weight.dtype == torch.bfloat16:
            with attributed(role, "optimizer"):
                master = weight.detach().float()
            masters[id(weight)] = weight, master
            weight.register_post_accumulate_grad_hook(_collect(role, master))
    return masters


def _collect(role: str, master: Tensor) -> Callable[[Tensor], None]:
    def collect(weight: Tensor) -> None:
        assert weight.grad is not None
        with attributed(role, "gradients"):
            gradient = weight.grad.float()
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)
        weight.grad = None

    return collect


def masters_of(masters: Masters, weights: Iterable[Tensor]) -> list[Tensor]:
    """The tensors that an optimiser trains: the master of each weight that has one, else the weight."""
    return [masters[id(weight)][1] if id(weight) in masters else weight for weight in weights]


@torch.no_grad()
def round_into_weights(masters: Masters) -> None:
    """Gives the weights the values of their masters, rounded."""
    for weight, master in masters.values():
        weight.copy_(master)
