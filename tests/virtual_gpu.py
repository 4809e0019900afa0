"""A GPU for machines that have none: tensors hold their values in the host's memory and claim to be on `cuda:0`.

A storage is on the GPU if a call placed it there (`device=`, `.to`) or if an operator computed it from storages on the
GPU. `Calls` intercepts every function of torch: it strips the device from the call and answers `Tensor.device`.
`Operators` intercepts every operator, autograd's included: it refuses what CUDA refuses and counts the GPU's work.
Below torch.cuda, whose own Python runs as on any machine, `bindings` replaces the driver and the allocator.

Values are real, so whole runs work: sampling, checkpoints, resuming. The kernels of a GPU, their rounding and their
speed are beyond it.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._C import TensorBase
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

HOST, GPU = torch.device("cpu"), torch.device("cuda", 0)
BLOCK, SEGMENT = 512, 2 << 20  # bytes: the allocator rounds tensors up to BLOCK, reserved memory to SEGMENT
TOTAL = 80_000_000_000

aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._copy_from.default}
INDEXED = {
    *(aten.index.Tensor, aten._unsafe_index.Tensor, aten.index_put.default, aten.index_put_.default),
    *(aten._index_put_impl_.default, aten._unsafe_index_put.default),
}
SIZED_BY_VALUES = {aten.nonzero.default, aten.masked_select.default, aten.equal.default, aten._unique2.default}
# operators that torch.use_deterministic_algorithms lists as raising on CUDA and that a language model could use
UNORDERED = {
    *(aten.cumsum.default, aten.cumsum_.default, aten.put.default, aten.put_.default, aten.histc.default),
    *(aten.median.dim, aten.nll_loss_forward.default, aten.nll_loss2d_forward.default),
}


class Refused(RuntimeError):
    """An operation that CUDA refuses."""


class VirtualGPU:
    """The storages on the GPU, and counts of its work.

    launches   number of operators that would start a kernel
    waits      number of times that the host would wait for the GPU, by reason
    live       bytes allocated now; `peak` is their maximum since its reset, `reserved` the bytes taken from the device
    """

    def __init__(self) -> None:
        self.storages: dict[int, int] = {}
        self.page_locked: set[int] = set()
        self.incomplete: set[int] = set()
        self.launches = 0
        self.waits: Counter[str] = Counter()
        self.live = self.peak = self.reserved = 0
        self.calls: list[tuple[str, Any]] = []

    def place(self, tensor: Tensor, device: torch.device) -> Tensor:
        """Puts the tensor's storage on the device."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if device == GPU and key not in self.storages:
            size = -(-storage.nbytes() // BLOCK) * BLOCK
            self.storages[key] = size
            self.live += size
            self.peak = max(self.peak, self.live)
            self.reserved = max(self.reserved, -(-self.live // SEGMENT) * SEGMENT)
            weakref.finalize(storage, self.free, key).atexit = False
        elif device == HOST and key in self.storages:
            self.free(key)
        return tensor

    def free(self, key: int) -> None:
        self.live -= self.storages.pop(key, 0)

    def device(self, tensor: Tensor) -> torch.device:
        """Device of a tensor that has values: `cuda:0` or `cpu`."""
        return GPU if tensor.untyped_storage()._cdata in self.storages else HOST

    def require_complete(self, tensor: Tensor) -> None:
        """Raises Refused if a queued copy from the GPU to the tensor is not complete."""
        if tensor.untyped_storage()._cdata in self.incomplete:
            raise Refused(f"{tuple(tensor.shape)} on cpu is read before the copy from the GPU is complete")

    def claimed(self, tensor: Tensor) -> torch.device:
        """Value of `Tensor.device`."""
        return self.device(tensor) if has_values(tensor) else TensorBase.device.__get__(tensor)


def tensors_in(args: Any, kwargs: dict[str, Any] | None = None) -> list[Tensor]:
    """Tensors among arguments or results, including those in lists; torch's pytree takes five times as long."""
    found = []
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += tensors_in(value)
    return found


def has_values(tensor: Tensor) -> bool:
    """False for the tensors of a prediction and of a model under construction."""
    return not isinstance(tensor, FakeTensor) and not tensor.is_meta


@cache
def looks_only(func: Any) -> bool:
    """Whether the operator returns a view of its input, so that no kernel runs."""
    returns = func._schema.returns
    views = bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)
    return views or func in (aten._unsafe_view.default, aten._reshape_alias.default, aten.detach.default)


class Operators(TorchDispatchMode):
    """Refuses an operator whose tensors are on different devices; counts all others and places their results."""

    def __init__(self, gpu: VirtualGPU, calls: Calls) -> None:
        super().__init__()
        self.gpu, self.calls = gpu, calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = tensors_in(args, kwargs)
        if not all(map(has_values, given)):
            return func(*args, **kwargs)
        device = self.device_of(func, args, kwargs, given)
        if device == GPU:
            self.count(func, args, given)
        elif not looks_only(func) and func not in COPIES:
            for tensor in given:
                self.gpu.require_complete(tensor)
        result = func(*args, **kwargs)
        if device == GPU:
            for tensor in tensors_in([result]):
                if has_values(tensor):
                    self.gpu.place(tensor, GPU)
        return result

    def count(self, func: Any, args: Any, given: list[Tensor]) -> None:
        """Counts the kernel and the wait of an operator on the GPU; in deterministic mode refuses unordered kernels."""
        gpu = self.gpu
        gpu.launches += not looks_only(func)
        if func is aten._local_scalar_dense.default:
            gpu.waits["item"] += 1
        elif func in SIZED_BY_VALUES or (func in INDEXED and any(x.dtype == torch.bool for x in tensors_in(args[1]))):
            gpu.waits[str(func)] += 1
        if torch.are_deterministic_algorithms_enabled() and func in UNORDERED and given[0].is_floating_point():
            raise Refused(f"{func} has no deterministic kernel on CUDA")

    def device_of(self, func: Any, args: Any, kwargs: dict[str, Any], given: list[Tensor]) -> torch.device:
        """Device on which the operator runs; raises Refused if CUDA would refuse it."""
        where = self.gpu.device
        if not given or kwargs.get("device") is not None:
            return self.calls.ambient
        if func in COPIES:
            self.count_copy(given[0], given[1], non_blocking=len(args) > 2 and args[2])
            return where(given[0])
        if func in INDEXED:
            return self.device_of_indexed(func, args)
        if len({where(x) for x in given}) == 1:
            return where(given[0])
        written = func._schema.arguments and func._schema.arguments[0].alias_info is not None
        numbers = all(x.dim() == 0 for x in given if where(x) == HOST)
        takes_numbers = torch.Tag.pointwise in func.tags or func._schema.name.startswith(
            ("aten::_foreach", "aten::fill_", "aten::masked_fill")
        )
        if numbers and takes_numbers and not (written and where(given[0]) == HOST):
            return GPU
        raise Refused(f"{func}: " + ", ".join(f"{tuple(x.shape)} on {where(x)}" for x in given))

    def device_of_indexed(self, func: Any, args: Any) -> torch.device:
        """Device of the indexed tensor: on the GPU it waits for host indices, on the host it refuses GPU indices."""
        where, own = self.gpu.device, self.gpu.device(args[0])
        for index in tensors_in(args[1]):
            if where(index) != own and own == HOST:
                raise Refused(f"{func}: a tensor on cpu is indexed by one on {where(index)}")
            self.gpu.waits["index from the host"] += where(index) != own
        for values in tensors_in(args[2:]):
            if where(values) != own and values.dim() > 0:
                raise Refused(f"{func}: values on {where(values)} are put into a tensor on {own}")
        return own

    def count_copy(self, target: Tensor, source: Tensor, non_blocking: bool) -> None:
        """Counts the wait for a copy between devices, unless it is queued from or to page-locked memory."""
        target_on, source_on = self.gpu.device(target), self.gpu.device(source)
        on_host = target if target_on == HOST else source
        queued = non_blocking and on_host.untyped_storage()._cdata in self.gpu.page_locked
        if target_on != source_on and not queued:
            self.gpu.waits[f"copy to {target_on.type}"] += 1
        elif target_on == HOST != source_on:
            self.gpu.incomplete.add(target.untyped_storage()._cdata)
        elif target_on == source_on:
            self.gpu.require_complete(source)


class Calls(TorchFunctionMode):
    """Strips the device from every call that names one, places the result there, and answers `Tensor.device`.

    ambient   device of the current call, where its operators create tensors that have no input
    """

    def __init__(self, gpu: VirtualGPU) -> None:
        super().__init__()
        self.gpu, self.ambient = gpu, HOST
        self.answers: dict[Any, Callable[..., Any]] = {
            Tensor.get_device: lambda x: -1 if gpu.device(x) == HOST else 0,
            Tensor.is_pinned: lambda x: x.untyped_storage()._cdata in gpu.page_locked,
            Tensor.numpy: self.to_numpy,
            Tensor.__array__: self.to_numpy,
            Tensor.tolist: self.to_list,
            Tensor.to: self.to,
            Tensor.cpu: lambda x: self.moved(x, HOST),
            Tensor.cuda: lambda x: self.moved(x, GPU),
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if isinstance(func, torch._ops.OpOverload):  # from a dispatch mode, inside a call
            return func(*args, **kwargs)
        if func in self.answers and has_values(args[0]):
            return self.answers[func](*args, **kwargs)
        tensors, named = filter(has_values, tensors_in(args, kwargs)), kwargs.get("device")
        near = GPU if any(self.gpu.device(x) == GPU for x in tensors) else HOST
        device = torch.device(named) if isinstance(named, str | torch.device) else near if named is None else GPU
        if device.type not in ("cpu", "cuda"):
            return func(*args, **kwargs)
        if (draws := kwargs.get("generator")) is not None and draws.device.type != device.type:
            raise Refused(f"{func.__name__}: a generator on {draws.device} for a tensor on {device}")
        return self.called(func, args, kwargs, GPU if device.type == "cuda" else HOST)

    def called(self, func: Any, args: Any, kwargs: dict[str, Any], device: torch.device) -> Any:
        """Result of a call without its `device`; a new tensor is placed on the device that the call named."""
        locked, names_one = kwargs.pop("pin_memory", False), kwargs.get("device") is not None
        if names_one:
            kwargs["device"] = HOST  # where the values are
        outer, self.ambient = self.ambient, device
        try:
            result = func(*args, **kwargs)
        finally:
            self.ambient = outer
        if locked:
            self.gpu.page_locked.add(result.untyped_storage()._cdata)
            weakref.finalize(result.untyped_storage(), self.gpu.page_locked.discard, result.untyped_storage()._cdata)
        if names_one and isinstance(result, Tensor) and has_values(result):
            if any(result is given for given in args):  # torch.as_tensor of a tensor
                return self.moved(result, device) if self.gpu.device(result) != device else result
            from_list = func in (torch.tensor, torch.as_tensor) and result.numel() > 0
            self.gpu.waits["made from a list"] += device == GPU and from_list
            self.gpu.place(result, device).detach()  # an operator shows a ledger the tensor on its new device
        return result

    def to(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Tensor.to, in its three forms."""
        rest = [x for x in args if x is not None]
        if rest and isinstance(rest[0], Tensor):
            rest[:1] = [self.gpu.device(rest[0]), rest[0].dtype]
        own = device = self.gpu.device(tensor)
        if kwargs.get("device") is not None:
            device = torch.device(kwargs["device"])
        elif rest and isinstance(rest[0], str | torch.device):
            device = torch.device(rest[0])
        if device.type == "meta":
            return tensor.to(*args, **kwargs)
        dtype = next((x for x in rest if isinstance(x, torch.dtype)), kwargs.get("dtype")) or tensor.dtype
        if device.type == own.type:
            return self.called(tensor.to, (dtype,), {"copy": kwargs.get("copy", False)}, own)
        return self.moved(tensor, device, dtype)

    def moved(self, tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
        """A copy on the other device. It carries no gradient, because no pass of a run crosses devices."""
        if tensor.requires_grad and torch.is_grad_enabled():
            raise Refused(f"a tensor of shape {tuple(tensor.shape)} that carries a gradient moves to {device}")
        place = GPU if device.type == "cuda" else HOST
        return self.called(torch.empty_like, (tensor,), {"dtype": dtype, "device": place}, place).copy_(tensor)

    def to_numpy(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.gpu.device(tensor) == GPU:
            raise Refused("numpy cannot read a tensor on cuda:0; it must be moved to the cpu first")
        self.gpu.require_complete(tensor)
        return tensor.numpy(*args, **kwargs)

    def to_list(self, tensor: Tensor) -> Any:
        self.gpu.require_complete(tensor)
        self.gpu.waits["tolist"] += self.gpu.device(tensor) == GPU
        return tensor.tolist()


class Generator(torch.Generator):
    """A generator that claims to be on a device; its draws are the host's."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        generator = super().__new__(cls, "cpu")
        generator.named = torch.device(device)
        return generator

    @property
    def device(self) -> torch.device:
        return self.named


def bindings(gpu: VirtualGPU) -> list[tuple[Any, str, Any]]:
    """Stand-ins for the library calls of torch.cuda, equally strict about types: (owner, name, stand-in)."""

    def takes(name: str, *types: type, returns: Any = None) -> tuple[Any, str, Any]:
        """A stand-in that records its calls and requires arguments of these types."""

        def stand_in(*arguments: Any) -> Any:
            if [type(argument) for argument in arguments] != list(types):
                raise TypeError(f"{name} takes {types}, not {arguments}")
            gpu.calls.append((name, arguments))
            return returns() if callable(returns) else returns

        return torch._C, name, stand_in

    def wait() -> None:
        gpu.waits["synchronize"] += 1
        gpu.incomplete.clear()

    def reset_peak() -> None:
        gpu.peak = gpu.live

    def statistics() -> dict[str, Any]:
        current, held = gpu.live, gpu.reserved
        return {
            "allocated_bytes": {"all": {"current": current, "peak": gpu.peak}},
            "reserved_bytes": {"all": {"current": held, "peak": held}},
        }

    def grouped(tensors: list[list[Tensor]], with_indices: bool) -> dict[Any, Any]:
        groups = group(tensors, with_indices)
        return {(gpu.device(found[0][0]), dtype): (found, at) for (_, dtype), (found, at) in groups.items()}

    group = torch._C._group_tensors_by_device_and_dtype
    properties = SimpleNamespace(name="virtual GPU", total_memory=TOTAL, major=9, minor=0, multi_processor_count=132)
    near = {"cuda": "cpu", GPU: "cpu"}  # the host's autocast: CUDA's rounds elsewhere
    enabled, set_enabled = torch.is_autocast_enabled, torch.set_autocast_enabled
    dtype, set_dtype = torch.get_autocast_dtype, torch.set_autocast_dtype
    return [
        takes("_cuda_getDeviceCount", returns=1),
        takes("_cuda_getDevice", returns=0),
        takes("_cuda_setDevice", int),
        takes("_cuda_synchronize", returns=wait),
        takes("_cuda_emptyCache"),
        takes("_cuda_getCurrentRawStream", int, returns=0),
        takes("_cuda_setMemoryFraction", float, int),
        takes("_cuda_memoryStats", int, returns=statistics),
        takes("_cuda_resetPeakMemoryStats", int, returns=reset_peak),
        (torch._C, "_cuda_record_memory_history", lambda *a, **k: gpu.calls.append(("history", a[0]))),
        (torch._C, "_cuda_memorySnapshot", lambda *a: {"segments": [], "device_traces": []}),
        (torch._C, "_group_tensors_by_device_and_dtype", grouped),
        (torch.cuda, "_initialized", True),
        (torch.cuda, "_cached_device_count", None),
        (torch.cuda, "default_generators", (torch.Generator(),)),
        (torch.cuda, "_get_device_properties", lambda index: properties),
        (torch.cuda, "_exchange_device", lambda index: 0),
        (torch.cuda, "_maybe_exchange_device", lambda index: 0),
        (torch, "Generator", Generator),
        (Tensor, "device", property(gpu.claimed)),
        (Tensor, "is_cuda", property(lambda x: gpu.claimed(x).type == "cuda")),
        (Tensor, "is_cpu", property(lambda x: gpu.claimed(x).type == "cpu")),
        (torch, "is_autocast_enabled", lambda kind="cpu": enabled(near.get(kind, kind))),
        (torch, "set_autocast_enabled", lambda kind, on: set_enabled(near.get(kind, kind), on)),
        (torch, "get_autocast_dtype", lambda kind: dtype(near.get(kind, kind))),
        (torch, "set_autocast_dtype", lambda kind, value: set_dtype(near.get(kind, kind), value)),
    ]


@contextmanager
def virtual_gpu() -> Iterator[VirtualGPU]:
    """Gives this machine one virtual GPU inside the context."""
    gpu = VirtualGPU()
    with ExitStack() as stack:
        for owner, name, stand_in in bindings(gpu):
            stack.enter_context(mock.patch.object(owner, name, stand_in, create=True))
        calls = stack.enter_context(Calls(gpu))
        stack.enter_context(Operators(gpu, calls))
        stack.enter_context(mock.patch("torch.autograd._engine_run_backward", seeing(calls)))
        yield gpu


def seeing(calls: Calls) -> Callable[..., Any]:
    """Autograd's engine under the mode `calls`, which torch disables while it handles a call of `backward`.

    Python functions and recomputed layers in a backward pass call torch like any other code.
    """
    engine = torch.autograd._engine_run_backward

    def run_backward(*args: Any, **kwargs: Any) -> Any:
        with calls:
            return engine(*args, **kwargs)

    return run_backward


def enters_a_virtual_gpu() -> None:
    """Gives the process a virtual GPU until it ends."""
    UNTIL_THE_END.enter_context(virtual_gpu())


UNTIL_THE_END = ExitStack()
