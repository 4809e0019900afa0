"""The work of a phase: floating-point operations, bytes and number of the operators that it launches."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
# torch's formulas lack the attention of the CPU (pytorch#195460)
FLOPS = flop_registry | {
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[aten._scaled_dot_product_flash_attention],
    aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        aten._scaled_dot_product_flash_attention_backward
    ],
}
ALLOCATES = (aten.empty, aten.new_empty, aten.empty_like, aten.empty_strided, aten.new_empty_strided)
READS_ROWS = (aten.embedding, aten.index, aten.index_select, aten.gather)  # of their first tensor as much as they write
ONLY_WRITES = (aten.copy_, aten.fill_, aten.zero_)  # their first tensor, whose values they do not read


class Operator(NamedTuple):
    """An operator as a device sees it.

    flops   floating-point operations of a matrix product, a convolution or attention; 0 of any other operator
    bytes   bytes that it reads and writes
    half    whether it computes in a format of 16 bits
    """

    flops: int
    bytes: int
    half: bool


Operators = Counter[Operator]  # number of launches of each; a share where only a part of a launch is counted


class Work(TorchDispatchMode):
    """Counts the operators that run while the mode is on and a phase is open, backward passes included.

    Views and allocations cost nothing. Fake tensors are counted as real ones.

    times   number of times that an operator counts from here on
    """

    def __init__(self) -> None:
        super().__init__()
        self.phases: defaultdict[str, Operators] = defaultdict(Counter)
        self.times = 0.0
        self._phase = ""

    @contextmanager
    def counted(self, times: float, phase: str = "") -> Iterator[None]:
        """Counts each operator in the context `times` times, not by the outer factor, in that phase or the outer."""
        outer = self._phase, self.times
        self._phase, self.times = phase or self._phase, times
        try:
            yield
        finally:
            self._phase, self.times = outer

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        operator = operator_of(func, args, kwargs or {}, result) if self.times else None
        if operator is not None:
            self.phases[self._phase][operator] += self.times  # type: ignore[assignment]
        return result


def operator_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Operator | None:
    """The operator that ran with these arguments; none for a view, an allocation or a question.

    It reads every argument once, unless it only writes to it, writes every result that has a storage of its own, and
    writes over the arguments that its schema says.
    """
    read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    known = {tensor.untyped_storage()._cdata for tensor in read}
    written = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
    written = [tensor for tensor in written if tensor.untyped_storage()._cdata not in known]
    over = [
        leaf
        for number, argument in enumerate(func._schema.arguments)
        if argument.is_write
        for leaf in tree_leaves(args[number] if number < len(args) else kwargs.get(argument.name))
        if isinstance(leaf, Tensor)
    ]
    packet = func.overloadpacket
    if packet in ALLOCATES or not (written or over):
        return None
    sizes = [size(tensor) for tensor in read]
    if packet in READS_ROWS:
        sizes[0] = min(sizes[0], sum(map(size, written)))
    if packet in ONLY_WRITES:
        sizes[0] = 0
    formula = FLOPS.get(packet) or FLOPS.get(out_of_place(packet))
    flops = formula(*args, **kwargs, out_val=result) if formula else 0
    half = bool(read) and read[0].is_floating_point() and read[0].itemsize == 2
    return Operator(flops, sum(sizes) + sum(map(size, [*written, *over])), half)


def out_of_place(packet: Any) -> Any:
    """`addmm` for `addmm_`: torch has the formula of the one alone."""
    return getattr(aten, packet.__name__.removesuffix("_"), None)


def size(tensor: Tensor) -> int:
    """Bytes of the tensor's elements; an expanded one has no more than its storage."""
    return min(tensor.numel() * tensor.itemsize, tensor.untyped_storage().nbytes())
