"""Weights of which every process holds a part, gathered for the passes over them: torch's `fully_shard` (FSDP2).

Parts are in float32, and so is what an optimiser keeps of them. A pass gathers all weights of its model at once, in
bfloat16 where the model is in it. Its backward pass leaves each process the summed gradient of its own part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from bakeoff import processes
from bakeoff.rows import map_tensors

T = TypeVar("T")


class _Held(nn.Module):
    """Modules whose weights are gathered together, around whatever is computed."""

    def __init__(self, modules: Iterable[nn.Module], inner: nn.Module | None = None) -> None:
        super().__init__()
        self.held, self.inner = nn.ModuleList(modules), inner

    def forward(self, compute: Callable[[], Any]) -> Any:
        return compute() if self.inner is None else self.inner(compute)


class Shard:
    """A model whose weights are held in parts.

    `precise` are its modules, embeddings and heads, whose weights are gathered in float32 even where `low` says that
    the others are gathered in bfloat16.
    """

    def __init__(self, networks: list[nn.Module], precise: list[nn.Module], device: torch.device, low: bool) -> None:
        mesh = init_device_mesh(device.type, (processes.size(),))
        inner: Any = fully_shard(_Held(precise), mesh=mesh, reshard_after_forward=False)
        kept = {parameter for module in precise for parameter in module.parameters()}
        how = (
            MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
            if low
            else MixedPrecisionPolicy()
        )
        outer = _Held(networks, inner)
        self._model: Any = fully_shard(
            outer, mesh=mesh, reshard_after_forward=False, mp_policy=how, ignored_params=kept
        )
        self._groups: list[Any] = [self._model, inner]
        for group in self._groups:  # sums: a loss has the weights of the whole minibatch
            group.set_gradient_divide_factor(1.0)
            group.set_force_sum_reduction_for_comms(True)

    def __call__(self, compute: Callable[[], T]) -> T:
        """A pass with gradients, made with whole weights. FSDP hooks into its tensors, which must be no views."""
        result: T = self._model(lambda: map_tensors(Tensor.clone, compute()))
        return result

    def in_turn(self, micro_batches: Iterable[slice]) -> Iterator[slice]:
        """The micro-batches of a minibatch; gradients are summed over the processes after the last one."""
        every = list(micro_batches)
        for number, rows in enumerate(every):
            last = number + 1 == len(every)
            self._model.set_is_last_backward(last)
            self._model.set_requires_gradient_sync(last)
            self._model.set_reshard_after_backward(last)
            yield rows

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Whole weights for all passes without gradients in the context."""
        for group in self._groups:
            group.unshard()
        try:
            yield
        finally:
            for group in self._groups:
                group.reshard()


Shards = dict[str, Shard]  # by model: actor, critic, reference


@contextmanager
def gathered(shards: Shards, models: Iterable[str]) -> Iterator[None]:
    """Whole weights of these models while the context is open."""
    with ExitStack() as stack:
        for name in models:
            if name in shards:
                stack.enter_context(shards[name].gathered())
        yield


def passed(shards: Shards, model: str, compute: Callable[[], T]) -> T:
    """A pass of a model with gradients."""
    return shards[model](compute) if model in shards else compute()


def in_turn(shards: Shards, model: str, micro_batches: Iterable[slice]) -> Iterable[slice]:
    """The micro-batches of a minibatch whose gradients are of this model."""
    return shards[model].in_turn(micro_batches) if model in shards else micro_batches


def in_parts(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor in the layout of its twin: in parts, where the twin is."""
    if isinstance(like, DTensor) and value.shape == like.shape:
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return value
