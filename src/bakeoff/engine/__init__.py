"""The engines, by the name in `engine=NAME`. Each is a class beside `engine.py`, which states the contract."""

from __future__ import annotations

from bakeoff.engine.embedded import Embedded
from bakeoff.engine.engine import Engine
from bakeoff.engine.rounded import Rounded
from bakeoff.engine.vllm import Vllm
from bakeoff.engine.vllm_server import VllmServer

ENGINES: dict[str, type[Engine]] = {"embedded": Embedded, "rounded": Rounded, "vllm": Vllm, "vllm_server": VllmServer}
# engines that sample the policy itself, up to rounding: a resumed run may switch between them
EQUIVALENT: tuple[type[Engine], ...] = (Embedded, Vllm, VllmServer)
