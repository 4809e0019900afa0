"""Numbers in texts: each accepted form states its value, in prose too, and an expression states none."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bakeoff.task.number import last_number, number_of

INTEGERS = {
    "plain": str,
    "commas": "{:,}".format,
    "blanks": lambda n: f"{n:,}".replace(",", " "),
    "thin blanks": lambda n: f"{n:,}".replace(",", "\u202f"),
    "apostrophes": lambda n: f"{n:,}".replace(",", "'"),
    "LaTeX": lambda n: f"{n:,}".replace(",", "{,}"),
    "a decimal": "{}.0".format,
    "dollars": "${:,}".format,
    "US dollars": "US$ {}".format,
    "bold": "**{}**".format,
    "in brackets": "({})".format,
    "boxed": r"\boxed{{{}}}".format,
    "a unit": "{} km/h".format,
    "a word": "{} eggs".format,
    "a square": "{} m²".format,
    "over one": "{}/1".format,
    "an improper fraction": lambda n: rf"\frac{{{n}}}{{1}}",
}
FACTORS = {  # written after a number, and what it is multiplied by
    " million": 10**6,
    " hundred thousand": 10**5,
    "e3": 10**3,
    " × 10³": 10**3,
    "x10^3": 10**3,
    r" \times 10^{-2}": Fraction(1, 100),
    "½": None,
    " 1/2": None,
    r"\frac{1}{2}": None,
}
SIGNS = ["", "-", "−", "–", "minus ", "- ", "– "]
PROSE = [
    "{}",
    "It is {}.",
    "x = {}",
    "So 3 + 4 = 7, and the answer is {}.",
    "Step 2: {}",
    "I count 12 and 3.\nIt is {}, then",
]


def same(text, value):
    found = number_of(text)
    assert found is not None, text
    assert found.value == value, text


@given(st.integers(0, 10**9), st.sampled_from([*INTEGERS]), st.sampled_from(SIGNS), st.sampled_from(PROSE))
@settings(max_examples=400, deadline=None)
def test_an_integer_in_each_form_is_the_last_number_of_prose(number, form, sign, prose):
    if form in ("bold", "in brackets", "boxed", "US dollars") or (sign.isalpha() and form == "dollars"):
        sign = ""
    written = sign + INTEGERS[form](number)
    value = -number if sign else number
    same(written, value)
    same(last_number(prose.format(written)), value)


@given(st.integers(0, 999), st.sampled_from([*FACTORS]), st.sampled_from(SIGNS), st.sampled_from(PROSE))
@settings(max_examples=300, deadline=None)
def test_a_number_with_a_factor_is_the_last_number_of_prose(number, factor, sign, prose):
    written = f"{sign}{number}{factor}"
    value = number + Fraction(1, 2) if FACTORS[factor] is None else number * FACTORS[factor]
    value = -value if sign else value
    same(written, value)
    same(last_number(prose.format(written)), value)


@given(st.integers(-(10**6), 10**6), st.integers(1, 999), st.sampled_from(["{}/{}", "{} / {}", r"\frac{{{}}}{{{}}}"]))
def test_a_fraction_is_the_last_number_of_prose(top, bottom, form):
    written = form.format(top, bottom)
    same(written, Fraction(top, bottom))
    same(last_number(f"The share is {written}."), Fraction(top, bottom))


@given(st.integers(0, 10**6), st.sampled_from(["{}%", "{} %", r"{}\%", "{} percent", "{} per cent"]))
def test_a_percentage_stays_one(number, form):
    written = form.format(number)
    for text in (written, last_number(f"It grew by 3 and then by {written}.")):
        same(text, number)
        assert number_of(text).percent


EXPRESSIONS = """x + {} | {} + x | x - {} | {} - x | {}*x | x*{} | {} × x | {} · x | {}÷x | {}/x | n/{}
{}x | {}xy | {} x
{} y | {}ab | sqrt({}) | sqrt {} | sqrt ({}) | log({}) | ln {} | sin({}) | f({}) | f(({})) | g ({}) | exp {}
the square root of {} | the cube of {} | |{}| | |-{}| | √{} | ∛{} | {}! | {}² | {}^2 | {}^{{x}} | 2^{} | 2**{}
e^{} | x^{} | x_{} | \\sqrt{{{}}} | \\log {} | \\pm {} | {}\\pi | {}π | \\frac{{x}}{{{}}} | \\frac{{{}}}{{x}}
\\frac{{x+{}}}{{2}} | -\\frac{{-{}}}{{x}} | {}\\cdot x | \\neq {} | x ≠ {} | x != {} | x >= {} | x < {} | ≥ {}
> {} | x ≤ {} | at least {} | at most {} | more than {} | {} or more | less than {} | not {} | it is not {}
it isn't {} | {} is wrong | x = 7 or x = {} | {}*100 | {}_100 | {}(100) | ({})(100) | {} (100) | {}$100
2({}) | {} mod x
{} plus x | x minus {} | eggs minus {} | {} times x | {} squared | half of {} | twice {} | double {}
{} and a half | {} fifths | {} dozen | {} factorial | {}k | ${}M | £{}m | {}bn x | {} choose two | {}‰ | {}:3
{} : 3 | {}: 3 | {} & x | {} ∈ A | ∑{} | {}i | {}e | {}–7 | {} to 7 | {}, 7 | between {} and 7
multiple of {} | divided by {}"""


@pytest.mark.parametrize("form", [form.strip() for line in EXPRESSIONS.split("\n") for form in line.split(" | ")])
def test_an_expression_states_no_number(form):
    for number in (0, 5, 9, 17, 500, "2.5"):
        assert number_of(form.format(number)) is None, form.format(number)


@pytest.mark.parametrize(
    "form",
    [
        *("The answer is {}.", "Natalia sold {} clips.", "There are {} eggs in the basket.", "**Answer:** {}"),
        *("#### {}", "{} dollars per hour", "${}/hour", "{} km/h", "{} kg·m", "{} L", "{} square metres", "{} m/s^2"),
        *("I eat {} apples a day", "x is {}", "{} is the answer", "7 + 8 is {}", "It's {}", "~{}", "x: {}"),
        *("{} times", "Step 1: {}"),
        *("`{}`", "*{}*", "__{}__", "(({}))", "$({})$", "[{}]", "about {}", r"$\text{{the sum is }} {}$", "{} % of it"),
    ],
)  # fmt: skip
def test_words_and_a_unit_may_stand_around_a_number(form):
    for number in (0, 5, 17, 1234, "2.5"):
        same(form.format(number), Fraction(number))


def test_a_sign_that_stands_apart_is_the_numbers_only_where_nothing_is_subtracted_from():
    for text in ("- 5", "x = - 5", "It is – 5.", "is negative 5", "(- 5)", "x =\n - 5"):
        same(last_number(text), -5)
    for text in ("3 - 5", "x - 5", "Steps:\n- 5 eggs", "a–5"):
        same(last_number(text), 5)
