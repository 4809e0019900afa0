"""Written answers: what they state, and whether it is the right answer."""

import pytest

from bakeoff.batch import Example
from bakeoff.task.countdown import solves
from bakeoff.task.number import LONGEST, number_of
from bakeoff.task.verify import COMPARED, Extract, choice_of, hint, same_choice, same_math, same_number

NUMBERS = [  # written, the right answer, whether both are the same number
    ("72", "72", True),
    ("72.", "72", True),
    ("72.0", "72", True),
    ("72.5", "72", False),
    ("073", "73", True),
    (".5", "0.5", True),
    ("1,234", "1234", True),
    ("1234", "1,234", True),
    ("1,234,567.50", "1234567.5", True),
    ("1,23", "123", False),
    ("12,34,567", "1234567", False),
    ("12 000", "12000", True),
    ("1 000 000", "1000000", True),
    ("1\u202f000", "1000", True),
    ("1'234'567", "1234567", True),
    ("12{,}000", "12000", True),
    (r"12\,000", "12000", True),
    ("-5", "-5", True),
    ("−5", "-5", True),
    ("– 5", "-5", True),
    ("- 5", "-5", True),
    ("+5", "5", True),
    ("5", "-5", False),
    ("−$1,234.50", "-1234.5", True),
    ("$-5", "-5", True),
    ("$18", "18", True),
    (r"\$18.00", "18", True),
    ("€ 12.50", "12.5", True),
    ("US$ 5", "5", True),
    ("5 dollars", "5", True),
    ("£3", "4", False),
    ("1/2", "0.5", True),
    ("3 / 4", "0.75", True),
    ("2/4", "1/2", True),
    ("0.33", "1/3", False),
    (r"\frac{3}{4}", "3/4", True),
    (r"\dfrac{-1}{2}", "-0.5", True),
    (r"-\frac12", "-1/2", True),
    (r"2\frac{1}{2}", "2.5", True),
    ("2 1/2", "5/2", True),
    ("2½ cups", "2.5", True),
    ("½", "0.5", True),
    ("1/0", "1", False),
    ("1/2/3", "1/6", False),
    ("12/05/2024", "12", False),
    ("50%", "50", True),
    ("50%", "0.5", True),
    ("50 percent", "50%", True),
    (r"50\%", "1/2", True),
    ("0.5%", "50%", False),
    ("0.5%", "0.5", True),
    ("5%", "50", False),
    ("42 km/h", "42", True),
    ("5 m^2", "5", True),
    ("5 cm²", "5", True),
    (r"5\text{ cm}^2", "5", True),
    (r"5 \mathrm{m}^{2}", "5", True),
    (r"90^\circ", "90", True),
    ("90°", "90", True),
    ("3 eggs", "3", True),
    ("0.5 L", "1/2", True),
    ("5 million", "5000000", True),
    ("1.5 thousand people", "1500", True),
    ("1e3", "1000", True),
    ("6.02×10^{23}", "6.02e23", True),
    ("3×10⁻²", "0.03", True),
    (r"2 \times 10^3", "2000", True),
    ("$42$", "42", True),
    (r"\(42\)", "42", True),
    (r"\boxed{42}", "42", True),
    (r"$\boxed{\text{42 km}}$", "42", True),
    ("**42**", "42", True),
    ("`42`", "42", True),
    ("(42)", "42", True),
    ("#### 42", "42", True),
    ("Answer: 42", "42", True),
    ("The answer is 42.", "42", True),
    ("x = 42", "42", True),
    ("x = -\\dfrac{1}{3}", "-1/3", True),
    ("12 + 30 = 42", "42", True),
    ("12 + 30", "42", False),
    ("42 = x", "42", True),
    ("≈ 42", "42", True),
    ("3-5", "3", False),
    ("3-5", "5", False),
    ("3–5", "-5", False),
    ("3 to 5", "5", False),
    ("3 or 5", "5", False),
    ("between 3 and 5", "5", False),
    ("3, 5", "5", False),
    ("10:30", "30", False),
    ("3:4", "3/4", False),
    ("≥ 5", "5", False),
    ("> 5", "5", False),
    ("± 5", "5", False),
    (r"\sqrt{4}", "4", False),
    ("2^3", "8", False),
    ("2π", "2", False),
    ("5x", "5", False),
    ("H2O", "2", False),
    ("0x1F", "1", False),
    ("5 of 10", "5", False),
    ("12 hours 30 minutes", "12", False),
    ("1.234,56", "1234.56", False),
    ("1e999999999", "1", False),
    ("", "0", False),
    ("none", "0", False),
    ("none", "none", True),
]


@pytest.mark.parametrize(("written", "right", "same"), NUMBERS)
def test_a_written_number_has_the_right_verdict(written, right, same):
    assert same_number(written, right) is same


def test_there_are_a_hundred_written_answers():
    assert len(NUMBERS) >= 100


@pytest.mark.parametrize("text", ["9" * 10**6, "\\frac{" * 10**5, "1e" + "9" * 500, "1 " * 10**5, "\\text{" * 400])
def test_a_text_that_no_one_would_write_states_no_number_and_takes_no_time(text):
    assert number_of(text) is None
    assert len(Extract.last_number(text)) <= max(len(text), LONGEST)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("b.", "B"),
        ("**B**", "B"),
        (r"\boxed{\text{(B)}}", "B"),
        ("B) because it is green", "B"),
        ("B. Green", "B"),
        ("The answer is B.", "B"),
        ("Answer: (C)", "C"),
        ("(A) is wrong, so the answer is **(D)**.", "D"),
        ("I choose (C)", "C"),
        ("A or B", ""),
        ("The answer is A or B", ""),
        ("(A) or (B)", ""),
        ("A dog", ""),
        ("I think so", ""),
        ("", ""),
    ],
)
def test_a_choice_is_read_where_it_is_clear(text, letter):
    assert choice_of(text) == letter


def test_a_choice_in_words_is_compared_as_words():
    assert same_choice("the Red Planet.", "The red planet")
    assert not same_choice("the blue planet", "The red planet")


def test_only_decoration_is_left_out_of_a_choice():
    for letter in "ABz":
        forms = (
            "{}",
            "({})",
            "{}.",
            "{})",
            "**{}**",
            "'{}'",
            "“{}”",
            r"\text{{{}}}",
            "[{}]",
            "{}:",
            "({}).",
            "${}$",
            "_{}_",
        )
        for form in forms:
            assert same_choice(form.format(letter.lower()), letter), form
            assert same_choice(letter, form.format(letter)), form
    meant = [
        "5",
        "-5",
        "+5",
        "< 5",
        "> 5",
        "= 5",
        "5%",
        "$5",
        "5!",
        "0.5",
        ".5",
        "1.5",
        "1 5",
        "15",
        "1,5",
        "1/5",
        "C",
        "C++",
    ]
    meant += [
        "C#",
        "-C",
        "C!",
        "C*",
        "C'",
        "C-",
        "A/B",
        "A B",
        "AB",
        "(1, 2)",
        "[1, 2]",
        "(1, 2]",
        "x + y",
        "x - y",
        "~C",
    ]
    for one in meant:
        for other in meant:
            assert same_choice(one, other) is (one == other), (one, other)
            assert same_choice(f"The answer is {one}", other) is (one.rstrip("!") == other == "C"), (one, other)


def test_the_words_of_a_choice_are_the_same_with_the_punctuation_of_prose():
    for written in (
        "ice cream",
        "Ice-Cream.",
        "**ice cream**",
        '"ice cream"',
        "ice cream!",
        "‘Ice cream’;",
        r"\text{ice cream}",
    ):
        assert same_choice(written, "ice cream"), written
    assert same_choice("b) Paris", "B. Paris")
    assert not same_choice("b) Paris", "C. Paris")


@pytest.mark.parametrize("verify", COMPARED)
def test_an_empty_answer_is_never_right(verify):
    for nothing in ("", " ", "\n\t", "\u00a0"):
        for right in ("", " ", "1", "B", "yes", "..", "!"):
            assert not COMPARED[verify](nothing, right)


@pytest.mark.parametrize(
    ("answer", "right", "same"),
    [
        (r"\frac{1}{2}", "0.5", True),
        (r"2\sqrt{3}", r"\sqrt{12}", True),
        (r"\{2, 1\}", r"\{1,2\}", True),
        (r"The answer is $x^2 + 2x + 1$.", "(x+1)^2", True),
        (r"(1, 2)", r"(1,2)", True),
        (r"\pi", "3.14", False),
        ("3", "4", False),
        ("", "4", False),
    ],
)
def test_an_expression_is_compared_by_its_meaning(answer, right, same):
    assert same_math(answer, right) is same


def test_every_extraction_finds_its_part():
    assert Extract.boxed(r"so \boxed{1} or \boxed{\frac{1}{2}} it is") == r"\frac{1}{2}"
    assert Extract.boxed(r"\boxed{1") == Extract.boxed("none") == ""
    assert Extract.after("a #### 1\n#### 2 \nend", "####") == "2"
    assert Extract.after("none", "####") == ""
    assert Extract.last_number(r"it costs −$1,200 or \frac{3}{4}") == "3/4"
    assert Extract.last_number("it costs −$1{,}200.") == "-1200"


def test_the_hint_names_the_comparison_that_would_accept_most():
    examples = [Example("1+1", "2"), Example("2+2", "4")]
    assert "task.verify=number task.extract=last_number would accept 2" in hint(["It is 2.", "I say 1, no 4"], examples)
    assert "task.extract=boxed would accept 1" in hint([r"\boxed{2} of 7", "none"], examples)
    assert "the answers are numbers" in hint(["no", "idea"], examples)
    assert hint(["no", "idea"], [Example("a", "yes"), Example("b", "maybe")]) == ""


@pytest.mark.parametrize(
    ("expression", "score"),
    [
        ("(1 + 2) / 3", 1),
        ("(1 + 2) ÷ 3 = 1", 1),
        ("3 − 1 × 2", 1),
        ("1 + 2 - 3", 0),
        ("3 - 2", 0),
        ("1", 0),
        ("1 + 2 - 2 + 3 - 3", 0),
        ("2 ** 0 + 1 * 3 - 3", 0),
        ("12 / 3 - 3", 0),
        ("1 / (3 - 2 - 1)", 0),
        ("(1 if 2 else 3)", 0),
        ("__import__('os').abort()", 0),
        ("(" * 90 + "1" + ")" * 90, 0),
        ("9**9**9**9", 0),
        ("1 + " * 10**6, 0),
        ("True + 2 / 2 - 3 + 1", 0),
        ("", 0),
    ],
)
def test_countdown_takes_arithmetic_that_uses_each_number_once(expression, score):
    assert solves(expression, "1", [1, 2, 3]) == score
