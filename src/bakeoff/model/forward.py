"""Forward passes over prompt and completion that every method uses: hidden states, logits, values.

A pass reads the sequences packed: the completions of a group have one prompt, which is read once for those of a row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from bakeoff.batch import Sequences
from bakeoff.model.packing import PADDING, completions_per_row, group_mask, pack, shares_prompts, skips_blocks
from bakeoff.model.policy import Policy, at_least_float32
from bakeoff.model.roles import Trunk
from bakeoff.model.value import ValueHead, ValueModel


@dataclass
class ForwardSettings:
    """How forward passes over completions are made.

    temperature    divides the logits
    micro_tokens     upper bound on the tokens that a pass reads, padding included; 0: none
    logits_mb        upper bound on the float32 logits of a chunk of tokens, in 10⁶ bytes; 0: none. A pass holds several
                     copies of a chunk, such as its softmax and its gradient
    shares_prompts   whether every model reads a prompt once for several completions, and not for each
    """

    temperature: float = 1.0
    micro_tokens: int = 0
    logits_mb: float = 0.0
    shares_prompts: bool = True


@dataclass
class Hidden:
    """Last hidden states at the positions that predict the N tokens that the policy wrote, of S sequences.

    states   [N, H]
    places   [N] int64, place of each token in the flattened [S, T]
    ids      [N] int64, the tokens themselves
    mask     [S, T] bool
    """

    states: Tensor
    places: Tensor
    ids: Tensor
    mask: Tensor

    def spread(self, values: Tensor) -> Tensor:
        """[S, T]: the values [N] of the policy's tokens, zero elsewhere."""
        return values.new_zeros(self.mask.numel()).index_put((self.places,), values).view(self.mask.shape)


def completion_logits(policy: Policy, sequences: Sequences, temperature: float = 1.0) -> Tensor:
    """Logits [N, V] in float32, divided by the temperature, that predict each completion token, row after row."""
    return policy.logits(completion_hidden(policy.trunk, sequences).states, temperature)


def completion_values(critic: ValueModel, sequences: Sequences) -> Tensor:
    """Values [S, T] of the state before each completion token, by a critic of its own."""
    return values_of(critic.head, completion_hidden(critic.trunk, sequences))


def values_of(head: ValueHead, hidden: Hidden) -> Tensor:
    """Values [S, T] by a head on last hidden states, in float32 at least."""
    return hidden.spread(head(at_least_float32(hidden.states)))


def completion_hidden(trunk: Trunk, sequences: Sequences) -> Hidden:
    """Last hidden states that predict each completion token."""
    network = trunk.backbone
    if not shares_prompts(network):
        sequences = replace(sequences, group_size=1)
    elif not skips_blocks(network):
        sequences = replace(sequences, group_size=completions_per_row(sequences))
    packed = pack(sequences)
    with trunk.computing():
        out = network(
            input_ids=packed.ids,
            attention_mask=group_mask(network, packed) if sequences.group_size > 1 else packed.member != PADDING,
            position_ids=packed.positions,
            use_cache=False,
        )
        states = out.last_hidden_state.flatten(0, 1).index_select(0, packed.predictors)
    ids = sequences.completion_ids.flatten().index_select(0, packed.places)
    return Hidden(states, packed.places, ids, sequences.mask)
