"""The contract of an engine, tested for every registered engine and for one with a different design."""

import copy
from dataclasses import dataclass, replace

import pytest
import torch

from bakeoff.algorithm.divergence import Diverged, require_finite
from bakeoff.batch import Example
from bakeoff.engine import ENGINES
from bakeoff.engine.embedded import truncated
from bakeoff.engine.engine import Engine, Generated, Request, Sampling, StaleWeights, make_rollout
from bakeoff.engine.rounded import Rounded
from bakeoff.engine.vllm import Vllm
from bakeoff.engine.vllm_requests import VllmEngine
from bakeoff.engine.vllm_server import VllmServer
from bakeoff.model.build import build
from bakeoff.model.encode import encode
from bakeoff.model.logprobs import token_logprobs
from bakeoff.model.weights import weights_version
from bakeoff.randomness import derive
from bakeoff.rows import select
from tests.conftest import compose, loop_of, update_of
from tests.engine.conftest import HEADS
from tests.passes import completion_logits

TEXTS = ["12=", "4829103758=", "7="]


@dataclass
class Uncached(Engine):
    """Samples one completion at a time, without a cache, from a copy of the weights; computes no entropy."""

    def load(self, policy):
        self.network, self.eos = copy.deepcopy(policy.network), policy.eos_ids

    @property
    def exact_logprobs(self):
        return False

    @torch.no_grad()
    def generate(self, request):
        prompts, completions, sampling = request.prompts, request.completions, request.sampling
        ids, logprobs = torch.zeros(2, len(prompts.texts) * completions, request.max_tokens)
        for row in range(len(ids)):
            read = prompts.ids[row // completions][prompts.attention[row // completions]].tolist()
            draws = torch.Generator().manual_seed(derive(request.seed, "completion", request.first + row))
            for step in range(request.max_tokens):
                logits = self.network(input_ids=torch.tensor([read])).logits[:, -1] / sampling.temperature
                weights = truncated(logits.softmax(-1), sampling.top_k, sampling.top_p)
                drawn = torch.multinomial(weights.nan_to_num(1.0), 1, generator=draws)
                token = int(logits.argmax() if request.greedy else drawn)
                weights = logits.softmax(-1) if request.greedy else weights / weights.sum()
                ids[row, step], logprobs[row, step] = token, weights.log()[0, token]
                if token in self.eos:
                    break
                read.append(token)
        require_finite(logprobs, "a log-probability of the policy that samples")
        return Generated(ids.long(), logprobs)


EVERY = ENGINES | {"uncached": Uncached}
NATS = {
    Rounded: 0.05,
    Vllm: 1e-4,
    VllmServer: 1e-4,
}  # how far an engine's log-probs may be from the policy's; 1e-5 for all others


@pytest.fixture(params=EVERY)
def engine(request) -> Engine:
    if request.param == "vllm":
        pytest.importorskip("vllm", reason="`make vllm-test` runs it")
        return Vllm(cache_mb=64)
    if request.param == "vllm_server":
        return VllmServer(url=request.getfixturevalue("vllm_url"))
    return EVERY[request.param]()


@pytest.fixture
def policy():
    """A policy that the test may change; short completions are likely."""
    policy = build(compose(*HEADS).model, seed=3)
    policy.network.eval()
    return policy


def asked(policy, completions=3, max_tokens=6, seed=0, greedy=False, stop=(), **sampling):
    prompts = encode(policy, [Example(text, "") for text in TEXTS], [])
    return Request(prompts, completions, Sampling(**sampling), max_tokens, seed, greedy, stop)


def completed(engine, policy, **options):
    engine.load(policy)
    request = asked(policy, **options)
    return make_rollout(policy, request, engine.generate(request))


def test_a_part_of_a_request_generates_what_the_whole_would_there(engine, policy):
    engine.load(policy)
    prompts = encode(policy, [Example(text, "") for text in TEXTS], [])
    whole = Request(prompts, 3, Sampling(), 6, seed=1)
    part = replace(whole, prompts=select(prompts, slice(1, 3)), first=3)
    completions = [make_rollout(policy, each, engine.generate(each)).completions for each in (whole, part)]
    assert completions[1] == completions[0][3:]


def test_completions_of_a_prompt_are_consecutive_and_within_the_budget(engine, policy):
    rollout = completed(engine, policy, max_tokens=6, temperature=2.0)
    lengths = rollout.sequences.mask.sum(1)
    assert rollout.prompts == [text for text in TEXTS for _ in range(3)]
    assert (len(rollout.sequences), rollout.group_size, rollout.max_tokens) == (9, 3, 6)
    assert lengths.max() <= 6
    assert (lengths[~rollout.ended] == 6).all()
    assert len(set(rollout.completions)) > 3


def test_the_seed_determines_the_completions(engine, policy):
    first, again, other = (completed(engine, policy, seed=seed) for seed in (1, 1, 2))
    assert first.completions == again.completions != other.completions


@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 0.7}, {"temperature": 2.0, "top_k": 4}, {"top_p": 0.8}], ids=str
)
def test_sampler_logprobs_are_those_of_the_truncated_policy(engine, policy, sampling):
    rollout, nats = completed(engine, policy, **sampling), NATS.get(type(engine), 1e-5)
    mask = rollout.sequences.mask
    logits = completion_logits(policy, rollout.sequences, sampling.get("temperature", 1.0))
    expected = token_logprobs(logits, rollout.sequences.completion_ids)
    kept = [truncated(step, sampling.get("top_k", 0), sampling.get("top_p", 1.0)) for step in logits.softmax(-1)]
    expected = expected - torch.stack(kept).sum(-1).log()
    agrees = (rollout.sampler_logprobs - expected)[mask].abs() < nats
    assert agrees.float().mean() >= (1.0 if type(engine) not in NATS else 0.9)  # rounding moves the edge of a nucleus
    if rollout.entropy is not None:
        entropy = torch.distributions.Categorical(logits=logits).entropy()
        assert torch.allclose(rollout.entropy[mask], entropy[mask], atol=nats)


@pytest.mark.parametrize("stop", [("7",), ("12", "34", "00"), ("absent",)], ids=str)
@pytest.mark.parametrize("max_tokens", [6, 20])
def test_a_completion_ends_at_the_first_stop_string(engine, policy, stop, max_tokens):
    """The text ends before it, the mask with the token that completes it; what is before is what it was without."""
    free = completed(engine, policy, max_tokens=max_tokens, temperature=2.0)
    ended = completed(engine, policy, max_tokens=max_tokens, temperature=2.0, stop=stop)
    lengths, before = ended.sequences.mask.sum(1), free.sequences.mask.sum(1)
    for row, text in enumerate(free.completions):
        at = min((text.index(each) for each in stop if each in text), default=None)
        assert ended.completions[row] == text[:at]
        kept = ended.sequences.completion_ids[row][: lengths[row]]
        assert torch.equal(kept, free.sequences.completion_ids[row][: lengths[row]])
        assert ended.ended[row] == (at is not None or free.ended[row])
        assert free.decode(kept.tolist()) in (text, *(text[:at] + each for each in stop))
        assert (lengths[row] < before[row]) or at is None or text.endswith(stop)
    assert ended.sequences.mask.shape[1] == lengths.max()
    assert (ended.sampler_logprobs[~ended.sequences.mask] == 0).all()


def test_top_k_of_one_gives_the_greedy_completion(engine, policy):
    greedy = completed(engine, policy, completions=1, greedy=True)
    ids, logits = greedy.sequences.completion_ids, completion_logits(policy, greedy.sequences)
    assert torch.equal(ids[greedy.sequences.mask], logits.argmax(-1)[greedy.sequences.mask])
    assert completed(engine, policy, completions=1, top_k=1).completions == greedy.completions


def test_load_takes_the_current_weights(engine, policy):
    completed(engine, policy)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.5)
    rollout = completed(engine, policy)
    expected = token_logprobs(completion_logits(policy, rollout.sequences), rollout.sequences.completion_ids)
    mask = rollout.sequences.mask
    assert torch.allclose(rollout.sampler_logprobs[mask], expected[mask], atol=NATS.get(type(engine), 1e-5))


def test_completions_of_weights_that_have_moved_since_are_refused(engine, policy):
    """An engine without a copy has none that could be old."""
    rollout, request = completed(engine, policy), asked(policy)
    assert (rollout.version is None) == (not isinstance(engine, Rounded | VllmEngine))
    with torch.no_grad():
        next(iter(policy.parameters())).add_(1e-3)
    generated = engine.generate(request)
    if rollout.version is not None:
        with pytest.raises(StaleWeights, match="must load the policy after every step"):
            make_rollout(policy, request, generated)
    assert completed(engine, policy).version in (None, weights_version(policy))


def test_sampling_with_weights_that_are_not_finite_raises_diverged(engine, policy):
    with torch.no_grad():
        policy.network.get_output_embeddings().weight.fill_(torch.nan)
    with pytest.raises(Diverged, match="a log-probability of the policy that samples is not finite"):
        completed(engine, policy)


@pytest.mark.parametrize("method", ["grpo", "dapo", "remax", "ppo"])
def test_the_first_minibatch_on_its_completions_is_on_policy(engine, method):
    """If the engine's log-probs are not exact, the training forward computes them again."""
    few = ["tuned=none", "batch.prompts=2", "batch.group_size=2", "sft.steps=0", "task.heldout=2", "task.digits=2"]
    loop = loop_of(compose(*few, *HEADS, "task.max_new_tokens=3", f"algorithm={method}"))
    loop = replace(loop, collector=replace(loop.collector, engine=engine))
    metrics = update_of(loop)
    assert metrics["policy/first_ratio_error"] < 1e-4
    assert ("policy/entropy" in metrics) == isinstance(engine, ENGINES["embedded"])
    assert ("rollout/sampler_mismatch" in metrics) == (not engine.exact_logprobs)
