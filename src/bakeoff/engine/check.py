"""One check of a loaded model: every kind of pass that a run makes agrees with a plain pass of the network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from bakeoff.batch import Example, Prompts, Sequences
from bakeoff.engine.embedded import Decoding
from bakeoff.engine.engine import Request, Sampling
from bakeoff.errors import UserError
from bakeoff.model.config import Precision
from bakeoff.model.forward import ForwardSettings
from bakeoff.model.logprobs import completion_logprobs, token_logprobs
from bakeoff.model.policy import Policy, recomputes

TOLERANCE = 1e-3  # nats; float32 gives some 1e-6
PROMPTS, GROUP, COMPLETION = (5, 2, 3), 2, 4  # lengths of the prompts, completions of each, their length


@torch.no_grad()
def check_model(policy: Policy, name: str, key: str = "model.name") -> None:
    """Raises UserError that names the first kind of pass whose log-probs differ from the plain pass, and the remedy.

    Plain is each sequence alone in evaluation mode: no padding, no cache, no shared prompt. Dropout, state outside of
    the cache, positions that ignore padding, and heads of an unknown kind all show here.
    """
    policy = replace(policy, precision=Precision.float32)
    sequences = probe(policy)
    refused = f"{key} is '{name}', whose log-probs are not those of a causal LM that bakeoff can train:"
    plain: Tensor | None = None
    for kind, (remedy, logprobs) in passes(policy, sequences).items():
        try:
            with torch.random.fork_rng(devices=[]):  # dropout draws
                found = logprobs()
        except Exception as failure:  # whatever a network makes of a cache, of padding, …
            reason = " ".join(str(failure).split())[:200]
            raise UserError(f"{refused} {kind} raises {type(failure).__name__} ({reason}); {remedy}.") from failure
        plain = found if plain is None else plain
        error = float((found - plain).abs().max())
        if not error < TOLERANCE:
            raise UserError(f"{refused} {kind} differs from a plain forward pass by {error:.2g} nats; {remedy}.")


def passes(policy: Policy, sequences: Sequences) -> dict[str, tuple[str, Callable[[], Tensor]]]:
    """Every kind of pass, the plain one first: what may help where it differs, and its log-probs [S, T]."""
    other = "choose another model, or another model.attention"
    head = "it must have a plain head, or one that is scaled or capped as in Cohere, Granite and Gemma"
    cached = "choose a model whose only state is a cache of keys and values, or another model.attention"
    noise = "set the model's dropout to 0, or model.gradient_checkpointing=false"
    alone = replace(sequences, group_size=1)
    found: dict[str, tuple[str, Callable[[], Tensor]]] = {
        "a plain forward pass": (other, partial(plain_logprobs, policy, sequences)),
        "the output head": (head, partial(plain_logprobs, policy, sequences, own_head=False)),
        "a pass over padded prompts": (other, partial(batched_logprobs, policy, alone)),
        "a pass with a shared prompt": (cached, partial(batched_logprobs, policy, sequences)),
        "decoding": (cached, partial(decoded_logprobs, policy, sequences)),
    }
    if recomputes(policy.network):  # all that training mode is for
        found["a pass in training mode"] = (noise, partial(batched_logprobs, policy, alone, training=True))
    return found


def probe(policy: Policy) -> Sequences:
    """Completions of prompts of unequal length, all of arbitrary tokens that are not special."""
    tokenizer = policy.tokenizer
    known = torch.tensor(sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids)))
    draws = torch.Generator().manual_seed(0)

    def tokens(*shape: int) -> Tensor:
        return known[torch.randint(len(known), shape, generator=draws)]

    width, rows = max(PROMPTS), len(PROMPTS) * GROUP
    attention = torch.arange(width) >= width - torch.tensor(PROMPTS)[:, None]
    ids = torch.where(attention, tokens(len(PROMPTS), width), tokenizer.pad_token_id)
    mask = torch.ones(rows, COMPLETION, dtype=torch.bool)
    both = torch.cat([ids.repeat_interleave(GROUP, 0), tokens(rows, COMPLETION)], 1)
    shown = torch.cat([attention.repeat_interleave(GROUP, 0), mask], 1)
    return Sequences(both.to(policy.device), shown.to(policy.device), mask.to(policy.device), GROUP)


def probe_prompts(sequences: Sequences) -> Prompts:
    """The prompts of the probe, without their completions."""
    ids, shown = (x[::GROUP, : sequences.prompt_width] for x in (sequences.ids, sequences.attention))
    return Prompts([Example("", None) for _ in PROMPTS], ["" for _ in PROMPTS], ids, shown)


def plain_logprobs(policy: Policy, sequences: Sequences, own_head: bool = True) -> Tensor:
    """log π [S, T] of the completions, each sequence alone, by the network's own head or by the policy's."""
    network, rows = policy.network, []
    for ids, shown in zip(sequences.ids, sequences.attention, strict=True):
        read = ids[shown][None]
        if own_head:
            logits = network(input_ids=read).logits.float()
        else:
            logits = policy.logits(network.base_model(input_ids=read).last_hidden_state)
        rows.append(token_logprobs(logits[0, -COMPLETION - 1 : -1], read[0, -COMPLETION:]))
    return torch.stack(rows)


def batched_logprobs(policy: Policy, sequences: Sequences, training: bool = False) -> Tensor:
    """log π [S, T] of the completions as the learner computes them."""
    policy.network.train(training)
    try:
        return completion_logprobs(policy, sequences, ForwardSettings())
    finally:
        policy.network.eval()


def decoded_logprobs(policy: Policy, sequences: Sequences) -> Tensor:
    """log π [S, T] of the completions as decoding computes them, token by token."""
    request, completions = Request(probe_prompts(sequences), GROUP, Sampling(), COMPLETION), sequences.completion_ids
    decoding, tokens = Decoding.begin(policy, request), completions.unbind(1)
    columns = [token_logprobs(policy.logits(decoding.hidden), tokens[0])]
    for read, token in pairwise(tokens):
        decoding.advance(read)
        columns.append(token_logprobs(policy.logits(decoding.hidden), token))
    return torch.stack(columns, 1)
