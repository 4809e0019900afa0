"""Whether a completion is right: the part of it that is the answer, and how that is compared with the right one."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from enum import Enum
from typing import Any

from bakeoff.batch import Example
from bakeoff.task.number import last_number, number_of


class Extract(Enum):
    """The part of a completion that is its answer."""

    whole = "whole"
    first_line = "first_line"
    last_number = "last_number"
    answer_tag = "answer_tag"
    boxed = "boxed"
    after = "after"

    def __call__(self, completion: str, pattern: str = "") -> str:
        """The answer, empty where the completion has none; `pattern` is what `after` looks for."""
        match self.value:
            case "first_line":
                return completion.strip().split("\n")[0].strip()
            case "last_number":
                return last_number(completion)
            case "answer_tag":
                closed = completion[: completion.rfind("</answer>") + len("</answer>")]  # else it is quadratic in tags
                tagged = re.findall(r"<answer>(.*?)</answer>", closed, re.DOTALL)
                return tagged[-1].strip() if tagged else ""
            case "boxed":
                return boxed(completion)
            case "after":
                ends = [found.end() for found in re.finditer(pattern, completion)]
                return completion[ends[-1] :].strip().split("\n")[0].strip() if ends else ""
            case _:
                return completion.strip()


class Verify(Enum):
    """How an answer is compared with the right one.

    exact      the same characters
    number     the same number, however it is written
    math       the same expression, by math-verify
    choice     the same letter of a multiple choice
    function   what a function of yours says
    """

    exact = "exact"
    number = "number"
    math = "math"
    choice = "choice"
    function = "function"


def boxed(text: str) -> str:
    """What the last `\\boxed{…}` holds, empty where there is none."""
    start = text.rfind("\\boxed{") + len("\\boxed{")
    depth = 1
    for end in range(start, len(text) if start >= len("\\boxed{") else 0):
        depth += (text[end] == "{") - (text[end] == "}")
        if depth == 0:
            return text[start:end].strip()
    return ""


def same_text(answer: str, right: str) -> bool:
    """Whether both texts are equal, up to blanks around them; two empty texts are not."""
    return answer.strip() == right.strip() != ""


def same_number(answer: str, right: str) -> bool:
    """Whether both state the same number; texts where the right answer states none."""
    expected = number_of(right)
    if expected is None:
        return same_text(answer, right)
    found = number_of(answer)
    return found is not None and found.equals(expected)


# what follows a letter makes a word, a number or an expression of it: C++, C#, A/B
LETTER = r"(?<![-+<>=/~])\(?([A-Z])(?![\w'’+#=<>^/&@%*-]|\.\d)\)?"
ALONE = re.compile(r"[\s(\[]*([A-Za-z])[\s)\].:,;]*")
LABEL = re.compile(r"\A\(?([a-z])[).:]+\s")
STATED = re.compile(rf"(?i:answer|choice|option)\b\W{{0,20}}(?:(?i:is|would be)\W{{1,20}})?{LETTER}")
NEXT = re.compile(r"[\s)*]*(?:or|and|/|,|&)\s*(?:\(?[A-Z](?![A-Za-z'’]))")


def choice_of(text: str) -> str:
    """The letter that a text chooses: `B`, `(b)`, `B) because …`, `the answer is **B**`. Empty where it is unclear."""
    text = undressed(text)
    if alone := ALONE.fullmatch(text):
        return alone[1].upper()
    stated = list(STATED.finditer(text))
    if stated:
        return "" if NEXT.match(text, stated[-1].end()) else stated[-1][1]
    if first := re.match(r"[(*]*([A-Z])[*]*[).:]", text):
        return "" if NEXT.match(text, first.end()) else first[1]
    bracketed = set(re.findall(r"\(([A-Z])\)", text))
    return bracketed.pop() if len(bracketed) == 1 else ""


def same_choice(answer: str, right: str) -> bool:
    """Whether both choose the same letter; words, but for case and punctuation, where the right answer is no letter.

    Punctuation that carries meaning counts: `-5` is not `5`, `C++` is not `C`, `(1, 2]` is not `[1, 2]`.
    """
    letter = ALONE.fullmatch(undressed(right))
    if letter:
        return choice_of(answer) == letter[1].upper()
    return words(answer) == words(right) != []


def undressed(text: str) -> str:
    """The text without what only dresses it: LaTeX's boxes and fonts, and emphasis and quotation marks in pairs."""
    text = re.sub(r"\\(?:boxed|text|textbf|mathrm)\s*\{|[{}]", "", text)
    for mark in "*_`$'\"":
        text = re.sub(rf"(?<![\w{mark}])([{mark}]{{1,3}})([^{mark}]+)\1(?![\w{mark}])", r"\2", text)
    return re.sub("[‘“]([^‘’“”]*)[’”]", r"\1", text).strip()


def words(text: str) -> list[str]:
    """The words of a text without case, and without the punctuation of prose: at the end of a word, and of a label."""
    text = re.sub(r"(?<=[^\W\d_]{2})-(?=[^\W\d_]{2})", " ", LABEL.sub(r"\1 ", undressed(text).casefold(), count=1))
    found = [re.sub(r"(?<=[^\W\d_]{2})[!?]+$", "", word.rstrip(".,;:")).rstrip(".,;:") for word in text.split()]
    return [word for word in found if word]


SENTENCE = re.compile(r"\$|\\boxed|\\\(|\\\[|(?<![\\{\w])[A-Za-z]{2,}\s+[A-Za-z]{2,}")  # no expression alone


def same_math(answer: str, right: str) -> bool:
    """Whether both are the same expression in LaTeX or plain text, by math-verify. It may take long, or for ever."""
    parse, verify = math_verify()
    expected = parse(f"${right}$", parsing_timeout=None) or parse(right, parsing_timeout=None)
    found = parse(answer, parsing_timeout=None) if SENTENCE.search(answer) else []
    found = found or parse(f"${answer}$", parsing_timeout=None)
    return bool(verify(expected, found, timeout_seconds=None))


def math_verify() -> tuple[Callable[..., list[Any]], Callable[..., bool]]:
    """math-verify's functions; importing them takes 3 s."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # its timeouts are signals, which the worker replaces
    from math_verify import parse, verify

    return parse, verify


COMPARED: dict[Verify, Callable[[str, str], bool]] = {
    Verify.exact: same_text,
    Verify.number: same_number,
    Verify.math: same_math,
    Verify.choice: same_choice,
}


def hint(completions: list[str], examples: list[Example]) -> str:
    """What to type where string equality accepts no completion; empty where no other comparison would accept one.

    Every cheap comparison is tried on these completions; the one that accepts the most is named.
    """
    tried = [(Verify.number, extract) for extract in (Extract.boxed, Extract.answer_tag, Extract.last_number)]
    tried += [(Verify.exact, extract) for extract in (Extract.boxed, Extract.answer_tag, Extract.first_line)]
    tried += [(Verify.number, Extract.whole), (Verify.choice, Extract.whole)]
    pairs = [(text, e.answer) for text, e in zip(completions, examples, strict=True) if e.answer is not None]
    accepted = {
        (verify, extract): sum(COMPARED[verify](extract(text), answer) for text, answer in pairs)
        for verify, extract in tried
    }
    (verify, extract), most = max(accepted.items(), key=lambda item: item[1])
    none = f"no completion matched its answer exactly in {len(pairs)} held-out prompts"
    if pairs and most:
        return f"{none}; task.verify={verify.value} task.extract={extract.value} would accept {most} of them."
    if pairs and all(number_of(answer) is not None for _, answer in pairs):
        return f"{none}, and the answers are numbers; task.verify=number task.extract=last_number compares numbers."
    return ""
