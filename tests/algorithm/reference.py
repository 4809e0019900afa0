"""An independent, slow reading of the papers: loops over sequences and tokens, plain Python floats."""

import math


def gae_double_sum(rewards, values, gamma, lam):
    """Â_t = Σ_l (γλ)^l δ_{t+l} for one sequence, by the definition."""
    n = len(rewards)
    following = [*values[1:], 0.0]
    deltas = [rewards[t] + gamma * following[t] - values[t] for t in range(n)]
    return [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, n)) for t in range(n)]


def whiten(rows):
    flat = [x for row in rows for x in row]
    mean = sum(flat) / len(flat)
    variance = sum((x - mean) ** 2 for x in flat) / len(flat)
    return [[(x - mean) / math.sqrt(variance + 1e-8) for x in row] for row in rows]


def ppo(logprobs, old, advantages, epsilon=0.2):
    """−mean over all tokens of min(ratio·A, clip(ratio)·A). Rows are sequences of unequal length."""
    terms = []
    for lp, lo, adv in zip(logprobs, old, advantages, strict=True):
        for a, b, advantage in zip(lp, lo, adv, strict=True):
            ratio = math.exp(a - b)
            terms.append(min(ratio * advantage, min(max(ratio, 1 - epsilon), 1 + epsilon) * advantage))
    return -sum(terms) / len(terms)


def ppo_kl(logprobs, old, advantages, beta):
    """−mean over tokens of ratio·A − β·(ratio − 1 − log ratio)."""
    terms = []
    for lp, lo, adv in zip(logprobs, old, advantages, strict=True):
        for a, b, advantage in zip(lp, lo, adv, strict=True):
            ratio = math.exp(a - b)
            terms.append(ratio * advantage - beta * (ratio - 1 - (a - b)))
    return -sum(terms) / len(terms)


def grpo(logprobs, old, reference, scores, group, beta=0.04, epsilon=0.2, eps_std=1e-4):
    """DeepSeekMath eq. 3 with eq. 4, outcome supervision."""
    advantages = []
    for start in range(0, len(scores), group):
        members = scores[start : start + group]
        mean = sum(members) / group
        std = math.sqrt(sum((x - mean) ** 2 for x in members) / (group - 1))
        advantages += [0.0 if max(members) == min(members) else (x - mean) / (std + eps_std) for x in members]
    total = 0.0
    for lp, lo, lr, advantage in zip(logprobs, old, reference, advantages, strict=True):
        terms = []
        for a, b, c in zip(lp, lo, lr, strict=True):
            ratio = math.exp(a - b)
            surrogate = min(ratio * advantage, min(max(ratio, 1 - epsilon), 1 + epsilon) * advantage)
            terms.append(surrogate - beta * (math.exp(c - a) - (c - a) - 1))
        total += sum(terms) / len(terms)
    return -total / len(scores)
