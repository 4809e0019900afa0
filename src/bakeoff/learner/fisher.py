"""Products with the Fisher information of a policy, for a natural gradient."""

from __future__ import annotations

from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bakeoff import processes
from bakeoff.attribution import attributed
from bakeoff.batch import Sequences
from bakeoff.model.forward import ForwardSettings, completion_logits
from bakeoff.model.micro_batches import own_micro_batches
from bakeoff.model.policy import Policy
from bakeoff.rows import select


class _Logits(nn.Module):
    """The policy's logits as a module, so that `functional_call` can replace its weights by dual numbers."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.network = policy.network
        self.policy = policy

    def forward(self, sequences: Sequences, temperature: float) -> Tensor:
        return completion_logits(self.policy, sequences, temperature)


def fisher_product(
    policy: Policy, sequences: Sequences, vector: list[Tensor], forward: ForwardSettings
) -> list[Tensor]:
    """F·v, one tensor per parameter, for F the mean over tokens of the Fisher information of their distributions.

    F = Jᵀ·H·J with J the Jacobian of the logits and H = diag(p) − p·pᵀ, the Hessian of KL(π_old‖π_θ) at π_old in the
    logits (Schulman et al. 2015, appendix C.1; the Gauss–Newton form of Schraudolph 2002). J·v is taken by forward
    mode, Jᵀ·u by one backward pass: there is no double backward, which fused attention kernels lack. They lack
    forward mode too, so that pass alone runs attention as plain matrix products.
    """
    parameters = policy.parameters()
    names = {id(p): name for name, p in _Logits(policy).named_parameters()}
    direction = {names[id(p)]: v for p, v in zip(parameters, vector, strict=True)}
    result = [torch.zeros_like(p) for p in parameters]
    count = sequences.mask.sum()
    for rows in own_micro_batches(sequences, forward):
        part = select(sequences, rows)
        tangent = logits_tangent(policy, part, direction, forward.temperature)
        logits = completion_logits(policy, part, forward.temperature)
        with attributed(policy.name, "logits"):
            p = logits.detach().softmax(-1)
            weighted = p * (tangent - (p * tangent).sum(-1, keepdim=True)) / count
        with attributed(policy.name, "activations"):
            grads = torch.autograd.grad(logits, parameters, weighted, allow_unused=True)
        for r, g in zip(result, grads, strict=True):
            if g is not None:
                r += g
    return processes.add(result)


def sequences_within(sequences: Sequences, tokens: int) -> int:
    """Number of first sequences with at most `tokens` completion tokens, padding included (0: all); at least one."""
    return min(max(1, tokens // sequences.mask.shape[1]), len(sequences)) if tokens else len(sequences)


@torch.no_grad()
def logits_tangent(policy: Policy, sequences: Sequences, direction: dict[str, Tensor], temperature: float) -> Tensor:
    """The derivative of the logits [N, V] along a direction of the parameters, by name."""
    module = _Logits(policy)
    weights = dict(module.named_parameters())
    with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
        duals: dict[str, Any] = {name: forward_ad.make_dual(weights[name], v) for name, v in direction.items()}
        logits = torch.func.functional_call(module, duals, (sequences, temperature))
        tangent: Tensor = forward_ad.unpack_dual(logits).tangent
        return tangent
