"""Independent, slow reference of every method: the papers' formulas in loops over floats, with analytic gradients.

It imports nothing from the package. Methods share sums, means and the papers' formulas, and nothing else.
"""

import math
from dataclasses import dataclass


@dataclass
class Case:
    """Inputs of a method. Rows are completions of unequal length; `group` consecutive rows share a prompt."""

    logprobs: list
    old: list
    reference: list
    values: list
    scores: list
    greedy: list
    steps: list  # for each completion: (token, score) of each step
    group: int
    budget: int  # generation budget in tokens
    entropy: list  # of the policy at each token, as numbers of their own

    def tokens(self):
        return [(i, t) for i, row in enumerate(self.logprobs) for t in range(len(row))]

    def groups(self):
        return [range(start, start + self.group) for start in range(0, len(self.logprobs), self.group)]


def mean(xs):
    return sum(xs) / len(xs)


def std(xs, ddof=1):
    return math.sqrt(sum((x - mean(xs)) ** 2 for x in xs) / (len(xs) - ddof))


def kl_rewards(case, beta, scores=None):
    """Rewards of tokens: −β·k1 on every token, plus the score on the last."""
    rows = []
    for i, (old, ref) in enumerate(zip(case.old, case.reference, strict=True)):
        row = [-beta * (a - b) for a, b in zip(old, ref, strict=True)]
        row[-1] += (scores or case.scores)[i]
        rows.append(row)
    return rows


def gae_double_sum(rewards, values, gamma, lam):
    """Â_t = Σ_l (γλ)^l δ_{t+l} for one sequence, from the definition."""
    n = len(rewards)
    following = [*values[1:], 0.0]
    deltas = [rewards[t] + gamma * following[t] - values[t] for t in range(n)]
    return [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, n)) for t in range(n)]


def whiten(rows):
    flat = [x for row in rows for x in row]
    deviation = math.sqrt(mean([(x - mean(flat)) ** 2 for x in flat]) + 1e-8)
    return [[(x - mean(flat)) / deviation for x in row] for row in rows]


def spread(per_sequence, case):
    """Advantages of tokens: each token has its completion's number."""
    return [[a] * len(row) for a, row in zip(per_sequence, case.logprobs, strict=True)]


def group_normalised(case, scores):
    advantages = []
    for members in case.groups():
        own = [scores[i] for i in members]
        flat = max(own) == min(own)
        advantages += [0.0 if flat else (x - mean(own)) / (std(own) + 1e-4) for x in own]
    return spread(advantages, case)


# Surrogates of one token: (value, derivative with respect to its log-prob).


def plain(ratio, advantage):
    return ratio * advantage, ratio * advantage


def clipped(low, high):
    def term(ratio, advantage):
        bounded = min(max(ratio, 1 - low), 1 + high)
        if bounded * advantage < ratio * advantage:
            return bounded * advantage, 0.0
        return plain(ratio, advantage)

    return term


def over_tokens(case, advantages, term, weight, penalty=None):
    """Loss −Σ weight·(term − penalty) over tokens, and its derivative with respect to each log-prob."""
    loss, gradient = 0.0, [[0.0] * len(row) for row in case.logprobs]
    for i, t in case.tokens():
        logprob, old = case.logprobs[i][t], case.old[i][t]
        value, slope = term(math.exp(logprob - old), advantages[i][t])
        cost, cost_slope = penalty(logprob, old, case.reference[i][t]) if penalty else (0.0, 0.0)
        loss -= weight(i) * (value - cost)
        gradient[i][t] = -weight(i) * (slope - cost_slope)
    return loss, gradient


def token_mean(case):
    total = len(case.tokens())
    return lambda i: 1 / total


def sequence_mean(case):
    return lambda i: 1 / len(case.logprobs[i]) / len(case.logprobs)


def k3_to_reference(beta):
    def penalty(logprob, old, reference):
        difference = reference - logprob
        return beta * (math.exp(difference) - difference - 1), beta * (1 - math.exp(difference))

    return penalty


def kl_to_behaviour(beta):
    """β·(ratio − 1 − log ratio), for samples of π_old."""

    def penalty(logprob, old, reference):
        difference = logprob - old
        return beta * (math.exp(difference) - 1 - difference), beta * (math.exp(difference) - 1)

    return penalty


def williams(case, baselines):
    """−1/S Σ_i Σ_t log π·(R_i − b_i); R includes the KL rewards."""
    returns = [sum(row) for row in kl_rewards(case, 0.01)]
    advantages = [r - b for r, b in zip(returns, baselines(returns), strict=True)]
    size = len(case.logprobs)
    loss = -sum(sum(row) * a for row, a in zip(case.logprobs, advantages, strict=True)) / size
    return loss, [[-a / size] * len(row) for row, a in zip(case.logprobs, advantages, strict=True)], None


def reinforce(case):
    return williams(case, lambda returns: [0.0] * len(returns))


def reinforce_baseline(case):
    return williams(case, lambda returns: [mean(returns)] * len(returns))


def rloo(case):
    def others(returns):
        return [mean([returns[j] for j in members if j != i]) for members in case.groups() for i in members]

    return williams(case, others)


def remax(case):
    return williams(case, lambda returns: [case.greedy[i // case.group] for i in range(len(returns))])


def importance_sampling(case):
    returns = [sum(row) for row in kl_rewards(case, 0.01)]
    advantages = spread([r - mean(returns) for r in returns], case)
    return *over_tokens(case, advantages, plain, token_mean(case)), None


def critic_advantages(case, lam_critic=0.95):
    """Whitened GAE and the critic's targets."""
    rewards = kl_rewards(case, 0.01)
    raw = [gae_double_sum(r, v, 1.0, 0.95) for r, v in zip(rewards, case.values, strict=True)]
    for_critic = [gae_double_sum(r, v, 1.0, lam_critic) for r, v in zip(rewards, case.values, strict=True)]
    targets = [[a + v for a, v in zip(*rows, strict=True)] for rows in zip(for_critic, case.values, strict=True)]
    return whiten(raw), targets


def ppo(case):
    advantages, targets = critic_advantages(case)
    return *over_tokens(case, advantages, clipped(0.2, 0.2), token_mean(case)), targets


def ppo_decoupled(case):
    advantages, targets = critic_advantages(case, lam_critic=1.0)
    return *over_tokens(case, advantages, clipped(0.2, 0.2), token_mean(case)), targets


def trpo(case):
    advantages, targets = critic_advantages(case)
    return *over_tokens(case, advantages, plain, token_mean(case)), targets


def ppo_penalty(case):
    advantages, targets = critic_advantages(case)
    return *over_tokens(case, advantages, plain, token_mean(case), kl_to_behaviour(1.0)), targets


def grpo(case):
    advantages = group_normalised(case, case.scores)
    return *over_tokens(case, advantages, clipped(0.2, 0.2), sequence_mean(case), k3_to_reference(0.04)), None


def clip_higher(case):
    advantages = group_normalised(case, case.scores)
    return *over_tokens(case, advantages, clipped(0.2, 0.28), sequence_mean(case), k3_to_reference(0.04)), None


def grpo_process(case):
    """§4.1.3: step rewards are normalised over the group; a token gets the sum of the steps that end at or after it."""
    advantages = []
    for members in case.groups():
        every = [score for i in members for _, score in case.steps[i]]
        flat = len(every) < 2 or max(every) == min(every)
        for i in members:
            normalised = [(end, 0.0 if flat else (x - mean(every)) / (std(every) + 1e-4)) for end, x in case.steps[i]]
            advantages.append([sum(x for end, x in normalised if end >= t) for t in range(len(case.logprobs[i]))])
    return *over_tokens(case, advantages, clipped(0.2, 0.2), sequence_mean(case), k3_to_reference(0.04)), None


def dr_grpo(case):
    advantages = [
        case.scores[i] - mean([case.scores[j] for j in members]) for members in case.groups() for i in members
    ]
    fixed = 1 / (len(case.logprobs) * case.budget)
    return *over_tokens(case, spread(advantages, case), clipped(0.2, 0.2), lambda i: fixed), None


def dapo(case):
    margin = 0.2 * case.budget
    lengths = [len(row) for row in case.logprobs]
    punished = [
        score - 0.5 * min(max((length - (case.budget - margin)) / margin, 0), 1)
        for score, length in zip(case.scores, lengths, strict=True)
    ]
    return *over_tokens(case, group_normalised(case, punished), clipped(0.2, 0.28), token_mean(case)), None


def gspo(case):
    """−1/S Σ min(s·A, clip(s)·A); ds/dlog π_t = s/length."""
    advantages, size = group_normalised(case, case.scores), len(case.logprobs)
    loss, gradient = 0.0, []
    for row, old, advantage in zip(case.logprobs, case.old, advantages, strict=True):
        ratio = math.exp(sum(a - b for a, b in zip(row, old, strict=True)) / len(row))
        value, slope = clipped(3e-4, 4e-4)(ratio, advantage[0])
        loss -= value / size
        gradient.append([-slope / len(row) / size] * len(row))
    return loss, gradient, None


def cispo(case):
    """−1/N Σ w·A·log π with constant w = min(ratio, 1.28)."""
    advantages, total = group_normalised(case, case.scores), len(case.tokens())
    loss, gradient = 0.0, [[0.0] * len(row) for row in case.logprobs]
    for i, t in case.tokens():
        weight = min(math.exp(case.logprobs[i][t] - case.old[i][t]), 1.28) * advantages[i][t] / total
        loss -= weight * case.logprobs[i][t]
        gradient[i][t] = -weight
    return loss, gradient, None


def dppo(case):
    """−1/N Σ w·A·log π with constant w = min(ratio, 20); zero where π moved by over 0.15 towards A's sign."""
    advantages, total = group_normalised(case, case.scores), len(case.tokens())
    loss, gradient = 0.0, [[0.0] * len(row) for row in case.logprobs]
    for i, t in case.tokens():
        new, old, advantage = case.logprobs[i][t], case.old[i][t], advantages[i][t]
        moved = math.exp(new) - math.exp(old)
        if (advantage > 0 and moved > 0.15) or (advantage < 0 and moved < -0.15):
            continue
        weight = min(math.exp(new - old), 20.0) * advantage / total
        loss -= weight * new
        gradient[i][t] = -weight
    return loss, gradient, None


def gmpo(case):
    """−1/S Σ A·(Π_t r_t, each clipped at e^±0.4 on the side of A's sign)^(1/length)."""
    advantages, size = group_normalised(case, case.scores), len(case.logprobs)
    loss, gradient = 0.0, []
    for row, old, own in zip(case.logprobs, case.old, advantages, strict=True):
        advantage, length, product, free = own[0], len(row), 1.0, []
        for new, before in zip(row, old, strict=True):
            ratio = math.exp(new - before)
            inside = ratio <= math.exp(0.4) if advantage > 0 else ratio >= math.exp(-0.4)
            product *= ratio if inside else math.exp(0.4 if advantage > 0 else -0.4)
            free.append(inside)
        value = product ** (1 / length) * advantage
        loss -= value / size
        gradient.append([-value / length / size if inside else 0.0 for inside in free])
    return loss, gradient, None


def reinforce_pp(case):
    to_go = [[sum(row[t:]) for t in range(len(row))] for row in kl_rewards(case, 0.01)]
    return *over_tokens(case, whiten(to_go), clipped(0.2, 0.2), token_mean(case)), None


def centred(case):
    return [case.scores[i] - mean([case.scores[j] for j in members]) for members in case.groups() for i in members]


def lite_ppo(case):
    advantages = [a / (std(case.scores) + 1e-4) for a in centred(case)]
    return *over_tokens(case, spread(advantages, case), clipped(0.2, 0.2), token_mean(case)), None


def k2_to_reference(beta):
    def penalty(logprob, old, reference):
        return beta * (logprob - reference) ** 2 / 2, beta * (logprob - reference)

    return penalty


def reinforce_pp_baseline(case):
    advantages = whiten(spread(centred(case), case))
    return *over_tokens(case, advantages, clipped(0.2, 0.2), token_mean(case), k2_to_reference(0.01)), None


def log_policy(case, advantages, weight, penalty=None):
    """−Σ weight·(log π·A − penalty): no ratio."""
    loss, gradient = 0.0, [[0.0] * len(row) for row in case.logprobs]
    for i, t in case.tokens():
        logprob = case.logprobs[i][t]
        cost, slope = penalty(logprob, case.old[i][t], case.reference[i][t]) if penalty else (0.0, 0.0)
        loss -= weight(i) * (logprob * advantages[i][t] - cost)
        gradient[i][t] = -weight(i) * (advantages[i][t] - slope)
    return loss, gradient, None


def rgra(case):
    return log_policy(case, group_normalised(case, case.scores), sequence_mean(case), k3_to_reference(0.04))


def sapo(case):
    def term(ratio, advantage):
        tau = 1.0 if advantage > 0 else 1.05
        gate = 1 / (1 + math.exp(-tau * (ratio - 1)))
        return 4 / tau * gate * advantage, 4 * gate * (1 - gate) * ratio * advantage

    return *over_tokens(case, group_normalised(case, case.scores), term, sequence_mean(case)), None


def maxrl(case):
    """(R − mean)/(mean + ε); the gradient of a group of scores 0 and 1 is that of its right answers' mean."""
    advantages = []
    for members in case.groups():
        own = [case.scores[i] for i in members]
        flat = max(own) == min(own) or mean(own) <= 0
        advantages += [0.0 if flat else (x - mean(own)) / (mean(own) + 1e-4) for x in own]
    return *over_tokens(case, spread(advantages, case), clipped(0.2, 0.2), token_mean(case)), None


def dual_clip(case):
    """Ye et al.: where A < 0, max(min(r·A, clip(r)·A), c·A)."""

    def term(ratio, advantage):
        value, slope = clipped(0.2, 0.2)(ratio, advantage)
        return (3.0 * advantage, 0.0) if advantage < 0 and 3.0 * advantage > value else (value, slope)

    advantages, targets = critic_advantages(case)
    return *over_tokens(case, advantages, term, token_mean(case)), targets


def delta(case):
    """INTELLECT-2: where A < 0, min(min(r, δ)·A, clip(r)·A)."""

    def term(ratio, advantage):
        cut = min(ratio, 4.0) if advantage < 0 else ratio
        bounded = min(max(ratio, 0.8), 1.2)
        if bounded * advantage < cut * advantage:
            return bounded * advantage, 0.0
        return cut * advantage, 0.0 if cut < ratio else ratio * advantage

    return *over_tokens(case, group_normalised(case, case.scores), term, token_mean(case)), None


def gae_length(case):
    rewards, raw, targets = kl_rewards(case, 0.01), [], []
    for own, values in zip(rewards, case.values, strict=True):
        lam = max(0.0, 1 - 1 / (0.05 * len(own)))
        raw.append(gae_double_sum(own, values, 1.0, lam))
        targets.append([a + v for a, v in zip(gae_double_sum(own, values, 1.0, 1.0), values, strict=True)])
    return *over_tokens(case, whiten(raw), clipped(0.2, 0.2), token_mean(case)), targets


def opo(case):
    advantages, size = [], len(case.logprobs)
    for members in case.groups():
        lengths = [len(case.logprobs[i]) for i in members]
        total = sum(n * case.scores[i] for n, i in zip(lengths, members, strict=True))
        advantages += [case.scores[i] - total / sum(lengths) for i in members]
    return log_policy(case, spread(advantages, case), lambda i: 1 / size)


def gpg(case):
    factor = len(case.scores) / sum(score != 0 for score in case.scores)
    return log_policy(case, spread([factor * a for a in centred(case)], case), token_mean(case))


def by_prompt(case):
    """CISPO's weights on A/(std of all scores), a mean over the tokens of a prompt, then over prompts."""
    advantages = [a / (std(case.scores) + 1e-4) for a in centred(case)]
    loss, gradient = 0.0, [[0.0] * len(row) for row in case.logprobs]
    for members in case.groups():
        tokens = sum(len(case.logprobs[i]) for i in members)
        for i in members:
            for t, (new, old) in enumerate(zip(case.logprobs[i], case.old[i], strict=True)):
                weight = min(math.exp(new - old), 1.28) * advantages[i] / tokens / len(case.groups())
                loss -= weight * new
                gradient[i][t] = -weight
    return loss, gradient, None


def opsm(case):
    advantages, kept = group_normalised(case, case.scores), []
    for row, old, own in zip(case.logprobs, case.old, advantages, strict=True):
        kept.append(own[0] >= 0 or mean([b - a for a, b in zip(row, old, strict=True)]) <= 0.1)
    loss, gradient = 0.0, [[0.0] * len(row) for row in case.logprobs]
    for i, t in case.tokens():
        new, old = case.logprobs[i][t], case.old[i][t]
        value, slope = clipped(0.2, 0.2)(math.exp(new - old), advantages[i][t]) if kept[i] else (0.0, 0.0)
        cost, cost_slope = k3_to_reference(0.04)(new, old, case.reference[i][t])
        weight = sequence_mean(case)(i)
        loss -= weight * (value - cost)
        gradient[i][t] = -weight * (slope - cost_slope)
    assert not all(kept), "no completion is dropped"
    return loss, gradient, None


def covariances(case, advantages):
    """(covariance, i, t) of every token, the largest first."""
    every = case.tokens()
    mean_a = mean([advantages[i][t] for i, t in every])
    mean_l = mean([case.old[i][t] for i, t in every])
    return sorted([((advantages[i][t] - mean_a) * (case.old[i][t] - mean_l), i, t) for i, t in every], reverse=True)


def clip_cov(case, least=0.1):
    """With so large a share that every token in the range is dropped."""
    advantages = group_normalised(case, case.scores)
    dropped = {(i, t) for value, i, t in covariances(case, advantages) if least <= value <= 5.0}
    assert 1 < len(dropped) < len(case.tokens())
    loss, gradient = over_tokens(case, advantages, plain, token_mean(case))
    for i, t in dropped:
        loss += math.exp(case.logprobs[i][t] - case.old[i][t]) * advantages[i][t] / len(case.tokens())
        gradient[i][t] = 0.0
    return loss, gradient, None


def kl_cov(case):
    advantages, total = group_normalised(case, case.scores), len(case.tokens())
    loss, gradient = over_tokens(case, advantages, plain, token_mean(case))
    _, i, t = covariances(case, advantages)[0]  # a share of 2e-4 of few tokens is one
    moved = case.logprobs[i][t] - case.old[i][t]
    gradient[i][t] += math.copysign(1.0, moved) / total
    return loss + abs(moved) / total, gradient, None


def entropy_bonus(case, coefficient=0.01):
    loss, gradient = over_tokens(case, group_normalised(case, case.scores), clipped(0.2, 0.2), token_mean(case))
    return loss - coefficient * mean([case.entropy[i][t] for i, t in case.tokens()]), gradient, None


def entropy_adaptive(case):
    return entropy_bonus(case, coefficient=0.0)  # where it starts


METHODS = {
    "reinforce": reinforce,
    "reinforce_baseline": reinforce_baseline,
    "importance_sampling": importance_sampling,
    "trpo": trpo,
    "ppo_penalty": ppo_penalty,
    "ppo_kl": ppo_penalty,
    "ppo": ppo,
    "ppo_decoupled": ppo_decoupled,
    "grpo": grpo,
    "grpo_iterative": grpo,
    "grpo_process": grpo_process,
    "rloo": rloo,
    "remax": remax,
    "dr_grpo": dr_grpo,
    "dapo": dapo,
    "clip_higher": clip_higher,
    "gspo": gspo,
    "cispo": cispo,
    "dppo": dppo,
    "gmpo": gmpo,
    "reinforce_pp": reinforce_pp,
    "lite_ppo": lite_ppo,
    "reinforce_pp_baseline": reinforce_pp_baseline,
    "rgra": rgra,
    "grpo_pairs": grpo,
    "sapo": sapo,
    "maxrl": maxrl,
    "dual_clip": dual_clip,
    "delta": delta,
    "gae_length": gae_length,
    "opo": opo,
    "gpg": gpg,
    "by_prompt": by_prompt,
    "opsm": opsm,
    "clip_cov": clip_cov,
    "kl_cov": kl_cov,
    "entropy_bonus": entropy_bonus,
    "entropy_adaptive": entropy_adaptive,
}
