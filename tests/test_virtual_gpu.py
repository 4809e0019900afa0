"""The virtual GPU refuses what CUDA refuses, counts waits for the GPU, and accepts everything else."""

import pytest
import torch
from torch import nn

from bakeoff.device import queued_copy, wait_for
from tests.virtual_gpu import GPU, HOST, Refused, virtual_gpu


@pytest.fixture
def gpu():
    with virtual_gpu() as gpu:
        yield gpu


def test_tensors_keep_their_values_and_claim_to_be_on_the_gpu(gpu):
    x = torch.arange(6, device="cuda").view(2, 3)
    assert (x.device, x.is_cuda, x[0].device, (x + 1).sum().device) == (GPU, True, GPU, GPU)
    assert x.cpu().device == x.to("cpu").device == HOST
    y = torch.arange(6)
    assert (torch.as_tensor(y, device="cuda").device, y.device) == (GPU, HOST)
    assert torch.zeros_like(x).device == x.new_ones(2).device == torch.ones(2).to(x).device == GPU
    assert x.sum().item() == 15
    layer = nn.Linear(3, 2).to("cuda")
    assert {p.device for p in layer.parameters()} == {layer(x.float()).device} == {GPU}


MIXTURES = {
    "a sum": lambda here, there: here + there,
    "a product": lambda here, there: there @ here,
    "a sum in place": lambda here, there: there.add_(here),
    "a choice": lambda here, there: torch.where(there > 0, here, there),
    "a stack": lambda here, there: torch.stack([here, there]),
    "a tensor of the host indexed by the GPU": lambda here, there: here[there.long()],
    "values of the host put among the GPU's": lambda here, there: there.index_put((there.long(),), here),
    "a scatter": lambda here, there: there.scatter(0, here.long(), 1.0),
    "a number of the GPU written into the host's": lambda here, there: here.sum().add_(there.sum()),
    "numpy": lambda here, there: there.numpy(),
    "a generator of the host": lambda here, there: torch.multinomial(there, 1, generator=torch.Generator()),
    "a generator of the GPU": lambda here, there: torch.randn(2, generator=torch.Generator("cuda")),
    "an optimiser's step": lambda here, there: torch._foreach_add_([there], [here]),
}


@pytest.mark.parametrize("mixture", MIXTURES)
def test_an_operator_that_mixes_devices_is_refused(mixture, gpu):
    with pytest.raises(Refused):
        MIXTURES[mixture](torch.ones(2, 2), torch.ones(2, 2, device="cuda"))


def test_an_operator_that_mixes_devices_in_a_backward_pass_is_refused(gpu):
    class Careless(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            return gradient * torch.ones(3)  # on the host

    with pytest.raises(Refused):
        Careless.apply(torch.ones(3, device="cuda", requires_grad=True)).sum().backward()


def test_scalars_and_indices_on_the_host_are_accepted(gpu):
    there = torch.ones(3, device="cuda")
    assert (there * torch.tensor(2.0)).device == GPU, "a scalar on the host"
    assert torch.where(there > 0, there, torch.tensor(0.0)).device == GPU
    assert there[torch.tensor([0, 1])].device == GPU, "an index on the host"
    assert gpu.waits["index from the host"] == 1


def test_an_operator_without_a_deterministic_kernel_is_refused_in_deterministic_mode(gpu):
    there = torch.ones(3, device="cuda")
    assert there.cumsum(0).tolist() == [1, 2, 3]
    torch.use_deterministic_algorithms(True)
    try:
        assert there.long().cumsum(0).tolist() == [1, 2, 3]
        with pytest.raises(Refused, match="no deterministic kernel"):
            there.cumsum(0)
    finally:
        torch.use_deterministic_algorithms(False)


def test_autocast_computes_in_bfloat16_and_gradients_are_on_the_gpu(gpu):
    layer, x = nn.Linear(3, 2).to("cuda"), torch.ones(4, 3, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        low = layer(x)
        with torch.autocast("cuda", enabled=False):
            assert layer(x).dtype == torch.float32
    low.float().sum().backward()
    assert low.dtype == torch.bfloat16
    assert layer.weight.grad.device == GPU


def test_every_wait_is_counted_and_a_view_launches_nothing(gpu):
    x = torch.arange(4, device="cuda")
    waits = {
        "item": lambda: x.sum().item(),
        "tolist": lambda: x.tolist(),
        "copy to cpu": lambda: x.to("cpu"),
        "copy to cuda": lambda: torch.arange(4).to("cuda"),
        "made from a list": lambda: torch.tensor([1, 2], device="cuda"),
        "aten.nonzero.default": lambda: x.nonzero(),
        "aten.index.Tensor": lambda: x[x > 1],
        "synchronize": lambda: torch.cuda.synchronize(),
    }
    for reason, wait in waits.items():
        gpu.waits.clear()
        wait()
        assert +gpu.waits == {reason: 1}
    gpu.waits.clear()
    launches = gpu.launches
    assert x.view(2, 2).t()[0].device == GPU
    assert (gpu.launches, gpu.waits.total()) == (launches, 0), "views launch nothing"


def test_copies_from_a_gpu_are_queued_and_waited_for_once(gpu):
    """The copies of offloading go to page-locked memory and back; reading one before it is complete is refused."""
    tensors = [torch.full((3,), float(number), device="cuda") for number in range(5)]
    gpu.waits.clear()
    copies = [queued_copy(tensor, HOST) for tensor in tensors]
    back = [queued_copy(copy, GPU) for copy in copies]
    for read in (lambda: copies[0] + 1, lambda: copies[0].tolist(), lambda: copies[0].numpy()):
        with pytest.raises(Refused, match="before the copy from the GPU is complete"):
            read()
    wait_for(GPU)
    assert +gpu.waits == {"synchronize": 1}
    assert all(copy.device == HOST and copy.is_pinned() for copy in copies)
    assert [x.tolist() for x in copies] == [x.tolist() for x in back] == [x.tolist() for x in tensors]


def test_the_allocator_counts_live_tensors_in_blocks(gpu):
    x = torch.zeros(1000, device="cuda")  # 4000 bytes in blocks of 512
    assert torch.cuda.memory_allocated() == 4096
    y = x + 1
    assert torch.cuda.max_memory_allocated() == 8192
    del y
    torch.cuda.reset_peak_memory_stats()
    assert torch.cuda.max_memory_allocated() == torch.cuda.memory_allocated() == 4096
    assert x.cpu().sum() == 0


def test_leaving_the_virtual_gpu_restores_torch():
    with virtual_gpu():
        kept = torch.zeros(3, device="cuda")
    assert not torch.cuda.is_available()
    assert (kept.device, torch.Generator().device) == (HOST, HOST)
    with pytest.raises((AssertionError, RuntimeError)):
        torch.zeros(1, device="cuda")
