"""How an override may be written, beyond Hydra's grammar."""

from __future__ import annotations

import re
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

COLON = re.compile(r"(\.py):(?=\s*\w+\s*:)")
OF_FUNCTIONS = re.compile(r"\+{0,2}reward\.(functions|process)=")
ADDS = re.compile(r"^(?=reward\.(functions|process)=\s*\{)")


def written(override: str) -> str:
    """An override in Hydra's grammar.

    A key within braces may be a function in a file, `{./rewards.py:brevity: 0.1}`: the grammar has no colon in a key.
    Functions that a dictionary names are added to those that are there, which Hydra's `++` does.
    """
    if not OF_FUNCTIONS.match(override):
        return override
    return ADDS.sub("++", COLON.sub(r"\1\\:", override))


def extend_grammar() -> None:
    """Makes Hydra read overrides as `written`: those of a command, of a study and of a launcher's jobs. Idempotent."""
    parse = OverridesParser.parse_rule
    if getattr(parse, "extended", False):
        return

    def parse_rule(self: OverridesParser, s: str, rule_name: str) -> Any:
        return parse(self, written(s), rule_name)

    parse_rule.extended = True  # type: ignore[attr-defined]
    OverridesParser.parse_rule = parse_rule  # type: ignore[method-assign]
