"""The number that a written answer states: `−$1,234.50`, `\\frac{3}{4}`, `2 1/2 cups`, `12\\%`, `x = 5`."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

LONGEST = 1000  # characters; what is longer is no number, and its digits would take seconds

SIGN, EXPONENT = r"(?:(?<![\w.])[-+])?", r"(?:[eE][-+]?\d+)?"
UNSIGNED = rf"(?:(?:\d{{1,3}}(?:,\d{{3}})+(?!\d)|\d+)(?:\.\d+)?{EXPONENT}|\.\d+{EXPONENT})"
NUMBER = re.compile(rf"{SIGN}{UNSIGNED}(?:/\d+(?![\d.]))?")
MIXED = re.compile(rf"(?P<sign>{SIGN})(?P<whole>\d+) (?P<top>\d+)/(?P<bottom>\d+)(?!\d)|{NUMBER.pattern}")

FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]*)\}\s*\{([^{}]*)\}|(\d)\s*(\d))")
GROUPED = re.compile(r"(?<![\d.,])\d{1,3}(?:[ '’]\d{3})+(?![\d'’])")
POWER_OF_TEN = re.compile(r"(?<=\d)\s*(?:\\times|\\cdot|[×·*x])\s*10\s*\^\s*(?:\{\s*(-?\d+)\s*\}|(-?\d+))")
CURRENCY = "[$€£¥₹]"
SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
RAISED = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
# what makes more of a text than a number: bounds, roots, powers, constants, other commands, factors with a name
OTHERWISE = re.compile(r"[<>≤≥±√π∞∛\\^]|\d\s?[xyzni](?![A-Za-z])|\d/(?!\d|[A-Za-z])")


@dataclass(frozen=True)
class Number:
    """A rational number; a percentage is the number before its sign."""

    value: Fraction
    percent: bool = False

    def equals(self, other: Number) -> bool:
        """Whether both are the same amount; 50 % is 50 and 1/2, but 0.5 % is neither."""
        mine, others = [self.value], [other.value]
        if self.percent != other.percent:
            mine += [self.value / 100] * self.percent
            others += [other.value / 100] * other.percent
        return any(one == another for one in mine for another in others)


def last_number(text: str) -> str:
    """The last number of a text, without separators of thousands: `$-1,234.50.` → -1234.50. Empty if there is none."""
    text = FRACTION.sub(as_fraction, without_separators(text.replace("−", "-")))
    text = re.sub(rf"([-+])\\?{CURRENCY}", r"\1", text)
    numbers = NUMBER.findall(text)
    return numbers[-1].replace(",", "") if numbers else ""


def without_separators(text: str) -> str:
    """The text with LaTeX's separators of thousands as commas: `12{,}000`, `12\\,000`."""
    return re.sub(r"\{,\}|\\[,!](?=\d{3})", ",", text)


def number_of(text: str) -> Number | None:
    """The one number that a text states, with words, a unit or a currency beside it; none where it states none.

    Of equations it is the right-hand side. Ranges, lists, bounds, roots and powers state no number.
    """
    if len(text) > LONGEST:
        return None
    text = plainly(text)
    stated = re.split(r"[=≈→]|:\s", text)[-1].strip()
    if not re.search(r"\d", stated):
        stated = text.strip()
    stated = re.sub(r"^([-+])\s+", r"\1", stated)
    found = list(MIXED.finditer(stated))
    if len(found) != 1 or OTHERWISE.search(stated):
        return None
    match = found[0]
    before, after = stated[: match.start()], stated[match.end() :]
    if re.search(r"[\w.]$", before) or re.search(r"\d", before + after):
        return None
    value = value_of(match)
    if value is None:
        return None
    scale = re.match(r"\s*(\w+)", after)
    value *= SCALES.get(scale[1].lower(), 1) if scale else 1
    return Number(value, bool(re.match(r"\s*(?:%|percent\b|per cent\b)", after)))


def plainly(text: str) -> str:
    """The text without what only decorates a number: LaTeX, currencies, powers of units, separators of thousands."""
    text = re.sub("[−‐‑‒–—﹣-]", "-", text)
    text = re.sub("[\u00a0\u2009\u202f]", " ", text)
    text = "".join(vulgar(character) for character in text).replace("⁄", "/")
    text = re.sub(r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\[()\[\]]", " ", text)
    text = without_separators(text)
    text = re.sub(r"\\[,!;: ]|\\q?quad|~", " ", text)
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?|\\degree|°", " degrees ", text)
    text = RAISED.sub(lambda raised: f"^{raised[0].translate(SUPERSCRIPTS)}", text)
    text = POWER_OF_TEN.sub(lambda power: f"e{power[1] or power[2]}", text)
    text = re.sub(r"\\approx(?![A-Za-z])", "≈", text)
    for _ in range(4):  # from the inside out
        text = FRACTION.sub(as_fraction, text)
        text = re.sub(r"\\(?:text|mathrm|textbf|mathbf|mbox|boxed|fbox|operatorname)\s*\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(rf"\\?{CURRENCY}|[*_`{{}}()\[\]]", lambda found: "" if found[0][-1] in "$€£¥₹" else " ", text)
    text = text.replace("\\%", "%")
    text = re.sub(r"(?<=[A-Za-zµμΩ])\s?\^\s?-?\d+|(?<!\d[eE])(?<=[a-z])[23](?!\w)", " ", text)
    text = GROUPED.sub(lambda grouped: re.sub(r"\D", "", grouped[0]), text)
    text = re.sub(r"(?<=\d)\s*/\s*(?=\d)", "/", text)
    return " ".join(text.split())


def vulgar(character: str) -> str:
    """`½` as ` 1/2`; any other character as it is."""
    if unicodedata.decomposition(character).startswith("<fraction>"):
        return " " + unicodedata.normalize("NFKC", character).replace("⁄", "/")
    return character


def as_fraction(match: re.Match[str]) -> str:
    """`\\frac{3}{4}` as `3/4`, apart from a whole number before it: `2\\frac{1}{2}` is two and a half."""
    top, bottom = (match[1], match[2]) if match[3] is None else (match[3], match[4])
    joined = re.match(r"\d", match.string[match.start() - 1 : match.start()])
    return f"{' ' if joined else ''}{top.strip()}/{bottom.strip()}"


def value_of(match: re.Match[str]) -> Fraction | None:
    """The value of a match of MIXED; none where it divides by zero or has an exponent beyond all numbers in use."""
    try:
        if match["whole"]:
            value = int(match["whole"]) + Fraction(int(match["top"]), int(match["bottom"]))
            return -value if match["sign"] == "-" else value
        top, _, bottom = match[0].replace(",", "").partition("/")
        exponent = re.search(r"[eE]([-+]?\d+)$", top)
        if exponent and abs(int(exponent[1])) > LONGEST:
            return None
        return Fraction(top) / int(bottom or 1)
    except ZeroDivisionError:
        return None
