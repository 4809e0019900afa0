"""The number that a written answer states: `−$1,234.50`, `\\frac{3}{4}`, `2 1/2 cups`, `12\\%`, `x = 5`."""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

LONGEST = 1000  # characters; what is longer is no number, and its digits would take seconds

SIGN, EXPONENT = r"(?:(?<![\w.])[-+])?", r"(?:[eE][-+]?\d+)?"
UNSIGNED = rf"(?:(?:\d{{1,3}}(?:,\d{{3}})+(?!\d)|\d+)(?:\.\d+)?{EXPONENT}|\.\d+{EXPONENT})"
NUMBER = rf"{SIGN}{UNSIGNED}(?:/\d+(?!\d|\.\d))?"
SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
MIXED = re.compile(
    rf"(?:(?P<sign>{SIGN})(?P<whole>\d+) (?P<top>\d+)/(?P<bottom>\d+)(?!\d|\.\d)|(?P<plain>{NUMBER}))"
    rf"(?P<scales>(?:\s?\b(?i:{'|'.join(SCALES)})s?\b)*)(?P<percent>\s?%|\s(?i:percent|per cent)\b)?"
)

FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]*)\}\s*\{([^{}]*)\}|(\d)\s*(\d))")
GROUPED = re.compile(r"(?<![\d.,])\d{1,3}(?:[ '’]\d{3})+(?![\d'’])")
POWER_OF_TEN = re.compile(r"(?<=\d)\s*(?:\\times|\\cdot|[×·*x])\s*10\s*\^\s*(?:\{\s*(-?\d+)\s*\}|(-?\d+))")
POWER = re.compile(r"(?<![\d.,])\d[\d.,]*\s?\^\s*[-+]?[\d.]*")
CURRENCY = r"(?:(?<![A-Za-z])(?:US|AU|CA|NZ|HK|SG|A|C|R|S))?\\?[$€£¥₹]"
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
RAISED = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
# a sign apart from its number belongs to it where nothing stands before that it could be subtracted from
APART = re.compile(
    r"(\A\s*|[=≈→]\s*|(?:[:(]|\b(?:is|are|was|equals|equal to)\b)[^\S\n]*)"
    r"(?:([-+])|(?i:minus|negative))[^\S\n]+(?=[\d.])"
)
SIDES = re.compile(r"[=≈→]|:\s|\b(?i:is|are|was|equals)\b(?!['’])")

LETTER = r"[^\W\d_]"
VARIABLE, ARTICLES = re.compile("[A-Za-zα-ωΑ-Ω]"), {"a", "A", "I"}
WORD = re.compile(rf"{LETTER}+(?:['’]{LETTER}+)*")
# beside a number only words and the punctuation of prose; a slash, a dot or a hyphen joins two words
SYMBOL = re.compile(rf"[^\w\s.,;:!?'\"’‘“”#%/·。，-]|_|(?<!{LETTER})[/·-]|[/·-](?!{LETTER})")
DENIED = re.compile(r"\b(?i:not|never|cannot|wrong|incorrect|or)\b|n['’]t\b|[<>≤≥≠]|[!/~]=|^[^A-Za-z]*\d\s?:\s*\d")
ABBREVIATED = re.compile(rf"{CURRENCY}\s*[\d.,]+\s?(?:[kKmMbBT]|bn|mn|tn)\b")  # £5m is five million
# units of one or two letters; any other letter at a number is a variable, and two at it are a product
UNIT = "g m s h d l t A C F J K L N V W km cm mm nm kg mg ml mL dl dL cl cL kJ kW kV mV mA Hz Pa eV mi ft yd in oz lb"
UNITS = {*UNIT.split(), "hr", "yr", "px", "ha", "dB", "kB", "MB", "GB", "TB", "am", "pm", "st", "nd", "rd", "th"}
# words that make another number of the one beside them
COUNTED = """
one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen twenty thirty forty fifty sixty seventy eighty ninety zero dozen lakh crore half halve twice thrice double
triple quadruple third quarter fourth fifth sixth seventh eighth ninth tenth hundredth thousandth millionth
"""
COMPUTED = """
plus minus negative divided multiplied squared cubed power factorial choose mod modulo root sqrt cbrt log ln lg exp sin
cos tan cot sec csc sinh cosh tanh arcsin arccos arctan abs absolute gcd lcm floor ceil ceiling det reciprocal inverse
opposite pi xy yz xz ab bc ac xyz abc than least most or nor no none neither except without but between
"""
COMPUTED_BEFORE = """
times over under above below beyond by from up until square cube multiple factor exceeds max min less more fewer
"""
AFTER_WORDS = {word + end for word in [*COUNTED.split(), *SCALES] for end in ("", "s")} | {*COMPUTED.split()}
BEFORE_WORDS = AFTER_WORDS | {*COMPUTED_BEFORE.split()}


@dataclass(frozen=True)
class Number:
    """A rational number; of a percentage, the number in front of the % sign."""

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
    """The last number of a text, as `number_of` reads it: `$-1,234.50.` → -1234.50, `so 1½ cups` → 1 1/2, `5 %` → 5%.

    Empty if there is none. A power, such as `2^10`, is none.
    """
    numbers = list(MIXED.finditer(POWER.sub("  ", plainly(text))))
    if not numbers:
        return ""
    mixed, percent = numbers[-1].span("percent")[0], "%" if numbers[-1]["percent"] else ""
    return numbers[-1][0][: mixed - numbers[-1].start() if percent else None].replace(",", "") + percent


def without_separators(text: str) -> str:
    """The text with LaTeX's separators of thousands as commas: `12{,}000`, `12\\,000`."""
    return re.sub(r"\{,\}|\\[,!](?=\d{3})", ",", text)


def number_of(text: str) -> Number | None:
    """The one number that a text states; none where it states none, or where it is an expression.

    A number may have a sign, a currency, separators of thousands, a fraction, a power of ten, a word such as million
    and a percent sign. Around it may stand words of two letters or more, such as `The answer is`, and a unit: `m`,
    `km/h`, `eggs`. Of equations it is the right-hand side, of `the sum is 5` what follows `is`. An operator, a
    function, a variable, a bound, a denial, or a word that counts or computes (`half`, `minus`, `log`) makes an
    expression of it.
    """
    if len(text) > LONGEST or ABBREVIATED.search(text):
        return None
    text = plainly(text)
    if DENIED.search(text):
        return None
    stated = next((side.strip() for side in reversed(SIDES.split(text)) if re.search(r"\d", side)), "")
    found = list(MIXED.finditer(stated))
    if len(found) != 1 or not is_alone(stated[: found[0].start()], stated[found[0].end() :]):
        return None
    value = value_of(found[0])
    return None if value is None else Number(value, bool(found[0]["percent"]))


def is_alone(before: str, after: str) -> bool:
    """Whether a number between these texts is one of prose, with a unit, and no part of an expression."""
    unit = re.match(rf"(\s?[/·]\s?|)({LETTER}+)", after)
    if unit and len(unit[2]) <= 2 and unit[2].isascii() and unit[2] not in UNITS:
        return False
    if re.search(r"[\w.]$", before) or re.search(r"\d", before + after) or re.match(r"\s?(?:!|squared|cubed)", after):
        return False
    after = after[unit.end(1) :] if unit else after
    if SYMBOL.search(before) or SYMBOL.search(after):
        return False
    return not (any(map(before_refuses, WORD.findall(before))) or any(map(after_refuses, WORD.findall(after))))


def before_refuses(word: str) -> bool:
    """Whether a word before a number makes an expression of it: a variable, or a word that counts or computes."""
    return word.casefold() in BEFORE_WORDS or (bool(VARIABLE.fullmatch(word)) and word not in ARTICLES)


def after_refuses(word: str) -> bool:
    """Whether a word after a number makes an expression of it: a letter that is no unit, or such a word."""
    return word.casefold() in AFTER_WORDS or (bool(VARIABLE.fullmatch(word)) and word not in UNITS | ARTICLES)


def plainly(text: str) -> str:
    """The text without what only decorates a number: LaTeX, currencies, powers of units, separators of thousands.

    What is left out leaves two blanks, so that what stood on both sides of it is no group of thousands.
    """
    text = re.sub("[−‐‑‒–—﹣-]", "-", text)
    text = re.sub("[\u00a0\u2009\u202f]", " ", text)
    text = re.sub(r"[^\x00-\x7f]", vulgar, text).replace("⁄", "/")
    text = re.sub(r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\[()\[\]]", "  ", text)
    text = without_separators(text)
    text = re.sub(r"\\[,!;: ]|\\q?quad|~", " ", text)
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?|\\degree|°", " degrees ", text)
    text = RAISED.sub(lambda raised: f"^{raised[0].translate(SUPERSCRIPTS)}", text)
    text = POWER_OF_TEN.sub(lambda power: f"e{power[1] or power[2]}", text)
    text = re.sub(r"\\approx(?![A-Za-z])", "≈", text)
    for _ in range(4):  # from the inside out
        text = FRACTION.sub(as_fraction, text)
        text = re.sub(r"\\(?:text|mathrm|textbf|mathbf|mbox|boxed|fbox)\s*\{([^{}]*)\}", r"  \1  ", text)
    for mark in "*_`":  # emphasis: in pairs, and not within a word
        text = re.sub(rf"(?<![\w{mark}])([{mark}]{{1,3}})([^{mark}]+)\1(?![\w{mark}])", r"  \2  ", text)
    text = re.sub(rf"(?<=[-+]){CURRENCY}\s*", "", text)
    text = re.sub(CURRENCY, "  ", text).replace("\\%", "%")
    text = re.sub(r"(?<=[A-Za-zµμΩ])\s{0,2}\^\s?\{?-?\d+\}?|(?<!\d[eE])(?<=[a-z])[23](?!\w)", "  ", text)
    # a bracket after a word or a number makes a function or a product of it, any other only encloses
    text = APART.sub(lambda apart: f"{apart[1]}{apart[2] or '-'}", text)
    text = re.sub(r"(?<![\w)\]}])[(\[{]|[)\]}](?![\w(\[{])", "  ", text)
    text = GROUPED.sub(lambda grouped: re.sub(r"\D", "", grouped[0]), text)
    text = re.sub(r"(?<=\d)\s*/\s*(?=\d)", "/", text)
    return " ".join(text.split())


def vulgar(match: re.Match[str]) -> str:
    """`½` as ` 1/2`; any other character as it is."""
    if unicodedata.decomposition(match[0]).startswith("<fraction>"):
        return " " + unicodedata.normalize("NFKC", match[0]).replace("⁄", "/")
    return match[0]


def as_fraction(match: re.Match[str]) -> str:
    """`\\frac{3}{4}` as `3/4`, apart from a whole number before it: `2\\frac{1}{2}` is two and a half."""
    top, bottom = (match[1], match[2]) if match[3] is None else (match[3], match[4])
    joined = re.match(r"\d", match.string[match.start() - 1 : match.start()])
    return f"{' ' if joined else ''}{top.strip()}/{bottom.strip()}"


def value_of(match: re.Match[str]) -> Fraction | None:
    """The value of a match of MIXED; none where it divides by zero or has an exponent beyond all numbers in use."""
    scale = math.prod(SCALES[word.rstrip("s")] for word in match["scales"].lower().split())
    try:
        if match["whole"]:
            value = int(match["whole"]) + Fraction(int(match["top"]), int(match["bottom"]))
            return (-value if match["sign"] == "-" else value) * scale
        top, _, bottom = match["plain"].replace(",", "").partition("/")
        exponent = re.search(r"[eE]([-+]?\d+)$", top)
        if exponent and abs(int(exponent[1])) > LONGEST:
            return None
        return Fraction(top) / int(bottom or 1) * scale
    except ZeroDivisionError:
        return None
