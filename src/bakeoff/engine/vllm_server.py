"""Rollouts by a vLLM server, on other GPUs or another machine, which receives the weights through a file."""

from __future__ import annotations

import asyncio
import math
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from bakeoff import processes
from bakeoff.device import HOST
from bakeoff.engine.vllm_requests import OTHERWISE, Completion, Server, VllmEngine
from bakeoff.errors import UserError, first_line

if TYPE_CHECKING:
    from aiohttp import ClientSession

    from bakeoff.model.policy import Policy

WORKER = "bakeoff.engine.vllm_worker.Weights"
START = (
    f"VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --worker-extension-cls {WORKER} --enable-scale-out "
    "--logprobs-mode processed_logprobs"
)
MEMORY = Path("/dev/shm")  # files in memory
AT_ONCE = 256  # requests
CONNECTING = 10.0  # seconds
LOWEST = -9999.0  # what the server sends in place of a log-prob that is not finite, which JSON lacks


@dataclass
class VllmServer(VllmEngine):
    """Decodes on a vLLM server, started with the model of the run by the command that docs/extending.md has.

    url      address of the server; $VLLM_API_KEY is its key, where it has one
    folder   folder that the server reads too, for the file of weights; empty: in the memory of this machine
    """

    name: ClassVar[str] = "vllm_server"

    url: str = "http://127.0.0.1:8000"
    folder: str = ""

    def connect(self, policy: Policy) -> Remote:
        """The server, which may have other weights."""
        return self.reach()

    def reach(self) -> Remote:
        """The server, asked once for its settings; raises UserError where it, or another program, answers otherwise."""
        if isinstance(known := getattr(self, "_server", None), Remote):
            return known
        folder = Path(self.folder or (MEMORY if MEMORY.is_dir() else tempfile.gettempdir()))
        remote = Remote(torch.float32, 0, self.url.rstrip("/"), folder)
        try:
            with self.alive():
                settings = remote.rpc("bakeoff_settings")[0]
            mode, remote.room = settings["logprobs_mode"], settings["max_model_len"]
            remote.dtype = getattr(torch, settings["dtype"])
        except (TypeError, LookupError, AttributeError, ValueError) as error:
            raise UserError(
                f"engine.url is '{self.url}', which does not answer as a vLLM server does; to start one, type: {START}."
            ) from error
        if mode != "processed_logprobs":
            raise UserError(
                f"engine.url is '{self.url}', whose log-probs are {mode}; start the server with "
                "--logprobs-mode processed_logprobs."
            )
        self._server = remote
        return remote

    def no_room(self, tokens: int) -> str:
        """A sentence that the server has no room for this number of tokens, and what gives it more."""
        return (
            f"engine.url is '{self.url}', which has room for {self._server.room} tokens, but a prompt and its "
            f"completion may have {tokens}; raise the server's --max-model-len."
        )

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Turns an answer that does not come into a UserError."""
        from aiohttp import ClientError  # late: most runs have no server

        try:
            yield
        except (ClientError, TimeoutError, OSError) as error:
            raise UserError(
                f"engine.url is '{self.url}', which does not answer ({type(error).__name__}: {first_line(error)}); to "
                f"start the server, type: {START}; {OTHERWISE}."
            ) from error


@dataclass
class Remote(Server):
    """A vLLM in other processes, perhaps on another machine.

    folder   for the file of weights
    label    version of the weights that this run has sent last, which no other run has
    """

    url: str
    folder: Path
    label: str = ""
    _run: str = field(default_factory=lambda: secrets.token_hex(4))
    _sent: int = 0

    def take(self, policy: Policy) -> None:
        """Sends the policy's weights through a file, which only lasts until the server has read it.

        Of several processes the first one sends them.
        """
        self._sent += 1
        self.label = processes.led(lambda: self.send(policy))

    def send(self, policy: Policy) -> str:
        """Sends the weights in the server's precision; returns their label.

        They have another label until they are there, which a run sees that uses the server at the same time.
        """
        from bakeoff.model.weights import exported  # late, as it imports transformers

        label = f"{self._run}-{self._sent}"
        weights = {name: tensor.to(HOST, self.dtype).contiguous() for name, tensor in exported(policy)}
        self.ask("/update_weight_version", {"new_version": f"{label}, half sent"})
        with weights_file(weights, self.folder, label) as path:
            try:
                self.rpc("bakeoff_take", str(path))
            except UserError as error:
                if "No such file" not in str(error):
                    raise
                raise UserError(
                    f"the weights go through '{self.folder}', which the server does not see; set engine.folder to a "
                    "folder that the server reads under the same path."
                ) from error
        self.ask("/update_weight_version", {"new_version": label})
        return label

    def complete(self, prompts: list[list[int]], parameters: list[dict[str, Any]]) -> list[Completion]:
        """The completions of each prompt, one after another; raises UserError where other weights wrote them."""
        self.ask("/reset_prefix_cache", {})
        asked = [{"token_ids": ids, "sampling_params": each} for ids, each in zip(prompts, parameters, strict=True)]
        found = asyncio.run(self.answers("/inference/v1/generate", asked))
        choices = [each for one in found for each in sorted(one["choices"], key=lambda each: each["index"])]
        for span in (span for each in choices for span in each["weight_versions"] or [{"version": "unknown"}]):
            if span["version"] != self.label:
                raise UserError(
                    f"engine.url is '{self.url}', whose weights are of version {span['version']}, but this run has "
                    f"sent {self.label}: another run uses the server; give each run a server of its own."
                )
        return [Completion(each["token_ids"], logprobs(each), each["stop_reason"]) for each in choices]

    def clear(self) -> None:
        """Clears its keys and values in every worker."""
        self.rpc("bakeoff_clear")

    def rpc(self, method: str, *arguments: str) -> Any:
        """What the method of each of the server's workers returns."""
        return self.ask("/collective_rpc", {"method": method, "args": list(arguments)}).get("results")

    def ask(self, path: str, content: dict[str, Any]) -> Any:
        """The answer to one request."""
        return asyncio.run(self.answers(path, [content]))[0]

    async def answers(self, path: str, contents: list[dict[str, Any]]) -> list[Any]:
        """The answers to requests that are sent at once, in their order."""
        from aiohttp import ClientSession, ClientTimeout, TCPConnector  # late: most runs have no server

        key = os.environ.get("VLLM_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = ClientTimeout(total=None, sock_connect=CONNECTING)
        async with ClientSession(headers=headers, timeout=limits, connector=TCPConnector(limit=AT_ONCE)) as session:
            return list(await asyncio.gather(*(self.answer(session, path, each) for each in contents)))

    async def answer(self, session: ClientSession, path: str, content: dict[str, Any]) -> Any:
        """The answer to one request; raises UserError where the server refuses it."""
        async with session.post(self.url + path, json=content) as response:
            if response.status == 200:
                return await response.json()
            text = " ".join((await response.text()).split())[:200]
            raise UserError(
                f"engine.url is '{self.url}', which answers {response.status} to {path} ({text}); to start "
                f"the server as this needs it, type: {START}."
            )


@contextmanager
def weights_file(weights: dict[str, Tensor], folder: Path, label: str) -> Iterator[Path]:
    """A file of the weights in the folder, which is deleted in the end; raises UserError where it cannot be written."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = folder / f"bakeoff_{label}.safetensors"
    try:
        try:
            save_file(weights, path)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"the weights cannot be written to '{folder}' ({first_line(error)}); set engine.folder to a folder "
                "with room that the server reads too."
            ) from error
        yield path
    finally:
        path.unlink(missing_ok=True)


def logprobs(choice: dict[str, Any]) -> list[float]:
    """The log-probs of a completion's tokens."""
    sent = [token["logprob"] for token in choice["logprobs"]["content"]]
    return [value if value > LOWEST else -math.inf for value in sent]
