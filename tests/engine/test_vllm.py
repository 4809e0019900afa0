"""vLLM beside the embedded engine. `make vllm-test` runs these tests, and those of the contract, with vLLM itself."""

import importlib.util
import os
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import pytest
import torch

from bakeoff.batch import Example
from bakeoff.engine.embedded import Embedded
from bakeoff.engine.engine import Request, Sampling, make_rollout
from bakeoff.engine.vllm import RUNNING, Vllm
from bakeoff.engine.vllm_server import VllmServer
from bakeoff.errors import UserError
from bakeoff.identity import config_id
from bakeoff.learner.learner import make_learner
from bakeoff.model.build import build
from bakeoff.model.encode import encode
from tests.commands import call
from tests.conftest import compose
from tests.engine.conftest import HEADS
from tests.engine.test_contract import asked, completed
from tests.passes import completion_logits
from tests.stored import history, only_run

MODELS = Path(os.environ.get("BAKEOFF_CACHE", Path.home() / ".cache/bakeoff"))  # before tests have a cache of their own
SMOLLM2 = MODELS / "smollm2_135m"
INSTALLED = importlib.util.find_spec("vllm") is not None
needs_vllm = pytest.mark.skipif(not INSTALLED, reason="`make vllm-test` runs it")
needs_smollm2 = pytest.mark.skipif(not SMOLLM2.is_dir(), reason="`make smollm2` fetches it")
SMALL = [
    *(*HEADS, "engine=vllm", "engine.cache_mb=64", "batch.prompts=4", "batch.group_size=4", "sft.steps=3"),
    *("task.heldout=16", "evaluation.every=2", "checkpoint.every=1", "hydra.run.dir=out", "seed=3"),
]


def policy_of(*overrides):
    policy = build(compose(*overrides).model, seed=3)
    policy.network.eval()
    return policy


@pytest.mark.skipif(INSTALLED, reason="vLLM is installed")
def test_without_vllm_a_run_ends_with_one_sentence_that_says_what_to_type(tmp_path):
    result = call("bakeoff.__main__", ("engine=vllm",), tmp_path)
    assert result.returncode == 2
    assert "engine is vllm, which is not installed; install it: `make vllm` for the CPU" in result.stderr
    assert not list(tmp_path.glob("outputs/*/*/*")), "nothing was begun"


@pytest.mark.parametrize("setting", ["engine.cache_mb=0", "engine.cache_mb=-1", "engine.precision=int8"])
def test_values_of_vllm_have_ranges(setting, tmp_path):
    result = call("bakeoff.__main__", ("engine=vllm", setting), tmp_path)
    assert result.returncode == 2
    assert setting.partition("=")[0] in result.stderr


def test_memory_is_predicted_without_vllm(tmp_path):
    result = call("bakeoff.__main__", ("engine=vllm", "mode=predict"), tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.fixture(params=["vllm", "vllm_server"])
def vllm(request):
    """vLLM in this process, and on a server."""
    pytest.importorskip("vllm", reason="`make vllm-test` runs it")
    return Vllm(cache_mb=64) if request.param == "vllm" else VllmServer(url=request.getfixturevalue("vllm_url"))


def test_greedy_completions_are_those_of_the_embedded_engine_in_float32(vllm):
    policy = policy_of(*HEADS)
    own, its = (completed(engine, policy, greedy=True, max_tokens=20) for engine in (Embedded(), vllm))
    assert its.completions == own.completions
    assert torch.allclose(its.sampler_logprobs, own.sampler_logprobs, atol=1e-4)


@needs_vllm
@needs_smollm2
def test_greedy_completions_of_smollm2_are_those_of_the_embedded_engine_in_float32():
    policy = policy_of("model=smollm2_135m", f"model.name={SMOLLM2}", "model.precision=float32", "model.chat=false")
    own, its = (completed(engine, policy, greedy=True, max_tokens=12) for engine in (Embedded(), Vllm(cache_mb=256)))
    assert its.completions == own.completions


def test_seeded_completions_of_more_prompts_than_one_pass_reads(vllm):
    policy, engine = policy_of(*HEADS), vllm
    prompts = encode(policy, [Example("7" * 99 + "=", "") for _ in range(100)], [])
    request = Request(prompts, 2, Sampling(), 4, seed=1)
    engine.load(policy)
    first, again = (make_rollout(policy, request, engine.generate(request)) for _ in range(2))
    assert first.completions == again.completions
    assert len(set(first.completions)) > 50


def test_vllm_samples_with_the_adapter_merged_in(vllm):
    config = compose(*HEADS, "model.lora.rank=4")
    learner = make_learner(config, policy_of(*HEADS))
    with torch.no_grad():
        for number, tensor in enumerate(learner.actor.trained().values()):
            tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(number)) / 4)
    rollout = completed(vllm, learner.actor)
    mask = rollout.sequences.mask
    with learner.actor.trunk.computing():
        logits = completion_logits(learner.actor, rollout.sequences, 1.0)
    expected = logits.log_softmax(-1).gather(2, rollout.sequences.completion_ids[..., None]).squeeze(2)
    assert torch.allclose(rollout.sampler_logprobs[mask], expected[mask], atol=1e-4)


@needs_vllm
def test_a_model_that_vllm_cannot_open_and_a_dead_vllm_are_one_sentence():
    with pytest.raises(UserError, match=r"engine is vllm, which ended with .*; engine=embedded needs no other library"):
        Vllm(cache_mb=64).load(policy_of())  # 16 dimensions a head
    policy, engine = policy_of(*HEADS), Vllm(cache_mb=64)
    completed(engine, policy)
    next(iter(RUNNING.values())).llm.llm_engine.engine_core.shutdown()
    with pytest.raises(UserError, match=r"engine is vllm, which ended with .*resumes a run from its last checkpoint"):
        completed(engine, policy)
    assert completed(engine, policy).completions, "the next load starts another"


@needs_vllm
def test_a_prompt_that_the_cache_does_not_hold_is_refused_with_the_key():
    policy = policy_of(*HEADS, "model.architecture.max_position_embeddings=1024")
    with pytest.raises(UserError, match=r"engine.cache_mb is 0.5, which holds keys and values of \d+ tokens"):
        completed(Vllm(cache_mb=0.5), policy, max_tokens=900)


@needs_vllm
def test_a_run_by_vllm_logs_the_mismatch_and_goes_on_with_the_embedded_engine(tmp_path):
    limit = "budget={unit: updates, limit: 2}"
    first = call("bakeoff.__main__", (*SMALL, "algorithm=grpo", limit), tmp_path)
    assert first.returncode == 0, first.stderr
    assert (history(tmp_path)["rollout/sampler_mismatch"] < 1e-4).all()
    later = call("bakeoff.__main__", ("resume=out", "engine=embedded", "budget.limit=4"), tmp_path)
    assert later.returncode == 0, later.stderr
    run = only_run(tmp_path)
    assert history(tmp_path)["progress/sequences"].tolist() == [16.0 * n for n in range(1, 5)]
    assert run.data.tags["changed.engine._option_"] == "Embedded"


@needs_vllm
def test_conversations_are_held_by_vllm(tmp_path):
    settings = (*SMALL, "task=sort_turns", "algorithm=grpo", "budget={unit: updates, limit: 1}")
    result = call("bakeoff.__main__", settings, tmp_path)
    assert result.returncode == 0, result.stderr


@needs_vllm
@needs_smollm2
def test_smollm2_learns_with_vllm(tmp_path):
    settings = ("task=largest", "model=smollm2_135m", f"model.name={SMOLLM2}", "algorithm=grpo", "seed=1")
    exact = ("engine=vllm", "engine.precision=float32", "model.precision=float32", "hydra.run.dir=out")
    result = call("bakeoff.__main__", (*settings, *exact), tmp_path)
    assert result.returncode == 0, result.stderr
    metrics = history(tmp_path)
    reward = metrics["reward/mean"].dropna()
    assert reward[-5:].mean() > reward[:5].mean()
    assert metrics["rollout/sampler_mismatch"].max() < 1e-3, "nats a token; bfloat16's rounding alone gives up to 0.2"


def test_a_server_that_another_run_uses_is_refused(vllm_url):
    policy, mine, other = policy_of(*HEADS), VllmServer(url=vllm_url), VllmServer(url=vllm_url)
    assert completed(mine, policy).completions
    completed(other, policy)
    with pytest.raises(UserError, match=r"weights are of version \w+-\d+, but this run has sent \w+-\d+: another run"):
        mine.generate(asked(policy))
    assert completed(mine, policy).completions, "its own weights again"


def test_a_prompt_for_which_the_server_has_no_room_is_refused(vllm_url):
    policy = policy_of(*HEADS, "model.architecture.max_position_embeddings=1024")
    with pytest.raises(UserError, match=r"has room for 128 tokens, .* may have \d+; raise the server's --max-model"):
        completed(VllmServer(url=vllm_url), policy, max_tokens=900)


def test_weights_that_cannot_be_handed_over_name_the_folder(vllm_url, tmp_path, monkeypatch):
    policy = policy_of(*HEADS)
    with pytest.raises(UserError, match=r"cannot be written to '/nowhere' .*No such file.* set engine.folder to"):
        completed(VllmServer(url=vllm_url, folder="/nowhere"), policy)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"through '.', which the server does not see; set engine.folder to"):
        completed(VllmServer(url=vllm_url, folder="."), policy)  # the server's working folder is another


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_with_a_server_logs_the_mismatch_and_goes_on_with_the_embedded_engine(vllm_url, tmp_path, processes):
    """No file of weights is left, and several processes have one server."""
    (tmp_path / "weights").mkdir()
    small = [each for each in SMALL if not each.startswith("engine")]
    server = ("engine=vllm_server", f"engine.url={vllm_url}", f"engine.folder={tmp_path / 'weights'}")
    limit = ("budget={unit: updates, limit: 2}", f"processes={processes}", "algorithm.optimizer.minibatches=1")
    first = call("bakeoff.__main__", (*small, *server, "algorithm=grpo", *limit), tmp_path)
    assert first.returncode == 0, first.stderr
    assert (history(tmp_path)["rollout/sampler_mismatch"] < 1e-4).all()
    assert not list((tmp_path / "weights").iterdir())
    later = call("bakeoff.__main__", ("resume=out", "engine=embedded", "budget.limit=4"), tmp_path)
    assert later.returncode == 0, later.stderr
    assert history(tmp_path)["progress/sequences"].tolist() == [16.0 * n for n in range(1, 5)]


@contextmanager
def serving(handler):
    """Address of a web server that is no vLLM; without its shutdown, its thread would spin on a closed socket."""
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@pytest.fixture(scope="module")
def another_program():
    with serving(SimpleHTTPRequestHandler) as url:
        yield url


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "nowhere", "8000", "ftp://127.0.0.1", "http://"])
def test_a_server_that_does_not_answer_is_one_sentence_before_anything_is_begun(url, tmp_path):
    result = call("bakeoff.__main__", ("engine=vllm_server", f"engine.url={url}"), tmp_path)
    assert result.returncode == 2
    assert f"engine.url is '{url}', which does not answer" in result.stderr
    assert "to start the server, type: VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --worker-extension-cls" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.glob("outputs/*/*/*")), "nothing was begun"


def test_a_program_that_is_no_vllm_is_one_sentence(another_program, tmp_path):
    result = call("bakeoff.__main__", ("engine=vllm_server", f"engine.url={another_program}"), tmp_path)
    assert result.returncode == 2
    assert f"engine.url is '{another_program}', which answers 501 to /collective_rpc" in result.stderr


@pytest.mark.parametrize(
    "answer", ["{}", "[]", "null", '{"results": []}', '{"results": [{}]}', '{"results": ["x"]}', "<p>"]
)
def test_a_program_that_answers_otherwise_is_one_sentence(answer):
    class Answers(BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(answer.encode())

    expected = r"^engine.url is .*, which does not answer as a vLLM server does; to start one, type"
    with serving(Answers) as url, pytest.raises(UserError, match=expected):
        VllmServer(url=url).reach()


def test_the_address_of_a_server_defines_no_arm():
    one, elsewhere = (compose("mode=predict", "engine=vllm_server", f"engine.url=http://{host}") for host in "ab")
    assert config_id(one) == config_id(elsewhere) != config_id(compose("mode=predict", "engine=vllm"))
