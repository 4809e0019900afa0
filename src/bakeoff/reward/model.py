"""The learned reward: a backbone with a scalar head that reads prompt and completion to the end."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bakeoff import processes
from bakeoff.batch import Sequences
from bakeoff.model.forward import ForwardSettings, completion_hidden
from bakeoff.model.micro_batches import own_micro_batches
from bakeoff.model.policy import at_least_float32
from bakeoff.model.value import ValueModel
from bakeoff.rows import pad_columns, select


@dataclass
class RewardModel:
    """A value model that is read after the last token. Its scores have mean 0 and deviation 1 on the start's pairs.

    Ziegler et al. 2019 §2.1 normalise so; a constant changes no preference.
    """

    network: ValueModel
    mean: Tensor = field(default_factory=lambda: torch.zeros(()))
    std: Tensor = field(default_factory=lambda: torch.ones(()))

    def raw(self, sequences: Sequences) -> Tensor:
        """Scores [S] before normalisation; carries gradient."""
        # One more column lets the pass read the last token: hidden states are those before each token.
        one, prompt, shown = torch.ones_like(sequences.mask[:, :1]), sequences.prompt_width, sequences.attention
        longer = replace(
            sequences,
            ids=pad_columns(sequences.ids, right=1),
            attention=torch.cat([shown[:, :prompt], one, shown[:, prompt:]], 1),
            mask=torch.cat([one, sequences.mask], 1),
        )
        states = completion_hidden(self.network.trunk, longer).states
        last = longer.mask.sum(1).cumsum(0) - 1
        scores: Tensor = self.network.head(at_least_float32(states.index_select(0, last)))
        return scores

    @torch.no_grad()
    def score(self, sequences: Sequences, forward: ForwardSettings) -> Tensor:
        """Normalised scores [S]; no more tokens at once than `forward` allows."""
        parts = [self.raw(select(sequences, rows)) for rows in own_micro_batches(sequences, forward)]
        return (processes.joined(parts, self.mean.device) - self.mean) / self.std

    def trained(self) -> dict[str, Tensor]:
        """The tensors that training changes, by name."""
        return self.network.trained() | {"mean": self.mean, "std": self.std}


def bradley_terry(chosen: Tensor, rejected: Tensor) -> Tensor:
    """−log σ(chosen − rejected), the mean over pairs [N]: Bradley & Terry 1952; Ouyang et al. 2022 eq. 1."""
    return -torch.nn.functional.logsigmoid(chosen - rejected).mean()
