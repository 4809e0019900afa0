"""A vLLM server on the CPU, started once for the tests that need one."""

import importlib.util
import os
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress

import pytest

from bakeoff.engine.vllm_server import WORKER
from bakeoff.model.build import build
from bakeoff.model.weights import save
from tests.chaos.outages import free_port
from tests.conftest import compose

# attention of 32 dimensions a head, the fewest that vLLM's kernel on the CPU computes
HEADS = ["model.architecture.num_attention_heads=2", "model.architecture.num_key_value_heads=2"]
OPTIONS = [
    *("--worker-extension-cls", WORKER, "--enable-scale-out", "--logprobs-mode", "processed_logprobs"),
    *("--dtype", "float32", "--kv-cache-memory-bytes", "64000000", "--enforce-eager", "--no-enable-chunked-prefill"),
]
ENVIRONMENT = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}


@pytest.fixture(scope="session")
def vllm_url(tmp_path_factory):
    """Address of a server that has the tiny model with heads of 32 dimensions, as the command of the docs starts it."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("`make vllm-test` runs it")
    folder = tmp_path_factory.mktemp("served")
    save(build(compose(*HEADS).model, seed=4), folder)
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    url = f"http://127.0.0.1:{(port := free_port())}"
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(
            [*command, "--port", str(port), *OPTIONS],
            env=os.environ | ENVIRONMENT,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        over = time.monotonic() + 300
        while not answers(url):
            assert server.poll() is None, (folder / "log").read_text()[-3000:]
            assert time.monotonic() < over, (folder / "log").read_text()[-3000:]
            time.sleep(1)
        yield url
    finally:
        server.terminate()
        server.wait(60)


def answers(url):
    with suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5) as response:
        return response.status == 200
    return False
