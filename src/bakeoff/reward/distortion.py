"""Distortions between a completion's score and the score that the method sees: level, scale, noise, errors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from bakeoff.ranges import VAST, number, share


@dataclass
class Distortion:
    """A distortion of the outcome score, which leaves the true reward and every accuracy as they are.

    The score s becomes factor(prompt) · s' + offset + level(prompt) + noise · N(0, 1), where s' is 1 − s in a share
    `flips` of the completions. Draws are from torch's generator of the CPU, which `loop.collect` seeds.

    offset          added to every score
    prompt_offset   level(prompt) is uniform in [0, this], the same for all completions of a prompt
    prompt_scale    factor(prompt) is log-uniform in [1/this, this]
    noise           standard deviation of Gaussian noise on each score
    flips           share of completions whose score is 1 − s: a verifier that errs; at ½ the score says nothing
    """

    offset: float = number(0.0, least=-VAST, most=VAST, unit="score")
    prompt_offset: float = number(0.0, least=0, most=VAST, unit="score")
    prompt_scale: float = number(1.0, least=1, most=VAST)
    noise: float = number(0.0, least=0, most=VAST, unit="score")
    flips: float = share(0.0)

    def __call__(self, outcome: Tensor, prompts: list[str]) -> Tensor:
        """The distorted scores [S] of completions to these prompts, on the CPU."""
        if self == Distortion():
            return outcome
        if self.flips:
            outcome = torch.where(torch.rand(len(outcome)) < self.flips, 1 - outcome, outcome)
        draws = {prompt: Random(prompt) for prompt in prompts}  # a prompt has the same level and factor in every run
        known = {prompt: (draw.random(), draw.random()) for prompt, draw in draws.items()}
        level, exponent = torch.tensor([known[prompt] for prompt in prompts]).unbind(1)
        factor = torch.exp((2 * exponent - 1) * math.log(self.prompt_scale))
        outcome = factor * outcome + self.offset + self.prompt_offset * level
        return outcome + self.noise * torch.randn(len(outcome)) if self.noise else outcome
