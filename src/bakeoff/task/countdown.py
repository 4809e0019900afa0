"""Countdown: arithmetic on given numbers that makes a target, as `(1 + 2) / 3`. The verifier evaluates no code."""

from __future__ import annotations

import ast
from collections import Counter
from fractions import Fraction
from typing import Any

LONGEST = 200  # characters of an expression
OPERATORS = {
    ast.Add: Fraction.__add__,
    ast.Sub: Fraction.__sub__,
    ast.Mult: Fraction.__mul__,
    ast.Div: Fraction.__truediv__,
}


def solves(completion: str, answer: str, nums: list[int], **columns: Any) -> float:
    """Whether an expression makes the target `answer` by + − × ÷ from the numbers `nums`, each of them used once.

    A right-hand side is allowed: `(1 + 2) / 3 = 1`.
    """
    text = completion.partition("=")[0].replace("−", "-").replace("×", "*").replace("÷", "/").strip()
    if not 0 < len(text) <= LONGEST:
        return 0.0
    used: list[int] = []
    try:
        right = value(ast.parse(text, mode="eval").body, used) == Fraction(answer)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return 0.0
    return float(right and Counter(used) == Counter(int(number) for number in nums))


def value(node: ast.expr, used: list[int]) -> Fraction:
    """The value of an expression, whose numbers are added to `used`; raises ValueError for all but + − × ÷."""
    match node:
        case ast.Constant(value=int(number)) if not isinstance(number, bool):
            used.append(number)
            return Fraction(number)
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in OPERATORS:
            return OPERATORS[type(operator)](value(left, used), value(right, used))
    raise ValueError(f"{ast.dump(node)[:60]} is not arithmetic")
