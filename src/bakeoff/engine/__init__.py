"""The engines, by the name that `engine=…` takes. Each is a class beside `engine.py`, which states the contract."""

from __future__ import annotations

from bakeoff.engine.embedded import Embedded
from bakeoff.engine.engine import Engine
from bakeoff.engine.rounded import Rounded
from bakeoff.engine.vllm import Vllm
from bakeoff.engine.vllm_server import VllmServer

ENGINES: dict[str, type[Engine]] = {"embedded": Embedded, "rounded": Rounded, "vllm": Vllm, "vllm_server": VllmServer}
# engines that sample the policy itself, to rounding: a run may change them
EQUIVALENT: tuple[type[Engine], ...] = (Embedded, Vllm, VllmServer)
