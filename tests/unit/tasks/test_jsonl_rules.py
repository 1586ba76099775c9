"""When an answer is right, and where in a response it stands."""

from __future__ import annotations

import re
import time

import pytest

from resd_lightning.config import ConfigError
from resd_lightning.tasks.jsonl.extraction import Extraction
from resd_lightning.tasks.jsonl.rules import Match, Rule, Tolerance, last_number, normalise, read_number

NEAR = Tolerance(absolute=0.0, relative=1e-6)


def holds(match: Match, answer: str, found: str, tolerance: Tolerance = NEAR) -> bool:
    return Rule(match, answer).holds(found, found, tolerance)


def test_exact_compares_character_for_character_but_for_the_ends():
    assert holds("exact", " Yes. ", "Yes.")
    assert not holds("exact", "Yes.", "yes.")
    assert not holds("exact", "Yes.", "Yes")
    assert not holds("exact", "a  b", "a b")
    assert holds("exact", "...", "...")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  The  Answer\n", "the answer"),
        ('**"Paris."**', "paris"),
        ("“Straße”!", "strasse"),
        ("(C)", "c"),
        ("e\u0301", "\u00e9"),  # an accent beside its letter is the letter with the accent
        ("don't", "don't"),
        ("-5", "-5"),
        (".5", ".5"),
        ("+5.", "+5"),
        ("50%", "50%"),
        ("$5", "$5"),
        ("x²", "x²"),
        ("?!", ""),
    ],
)
def test_normalising_takes_off_what_does_not_change_an_answer(text, expected):
    assert normalise(text) == expected


def test_normalised_answers_are_the_same_apart_from_case_spaces_and_ends():
    assert holds("normalised", "New York", " new   york. ")
    assert not holds("normalised", "5", "-5")
    assert not holds("normalised", "5", ".5")
    assert not holds("normalised", "New York", "New York City")
    assert not holds("normalised", "New York", "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("42", 42.0),
        ("It is 42.", 42.0),
        ("2 + 3 = 5, so 5!", 5.0),
        ("-5", -5.0),
        ("\u22125", -5.0),  # the minus sign of typesetters
        ("x=-5", -5.0),
        ("7 - 5", 5.0),
        ("10-20", 20.0),
        ("+.5", 0.5),
        ("1,234,567.5", 1234567.5),
        ("costs 1,234, so", 1234.0),
        ("1,2", 2.0),
        ("(3,4)", 4.0),
        ("-$1,000.50", -1000.5),
        ("$.50", 0.5),
        ("50%", 50.0),
        ("12km", 12.0),
        ("-2.5e-3", -0.0025),
        ("3/4", 0.75),
        ("-1 / 8 of it", -0.125),
        ("0.1.", 0.1),
        ("**7**", 7.0),
        ("x2", None),
        ("v1.2.3", None),
        ("no number", None),
        ("", None),
        ("1/0", None),
        ("1e999", None),
        ("inf", None),
        ("nan", None),
        ("٤", None),
    ],
)
def test_the_last_number_of_a_text(text, expected):
    assert last_number(text) == expected


def test_an_expected_number_is_the_whole_text():
    assert [read_number(text) for text in (" 1,000 ", "-3/4", "1e3")] == [1000.0, -0.75, 1000.0]
    assert [read_number(text) for text in ("5 apples", "1 2", "", "nan")] == [None] * 4


@pytest.mark.parametrize(
    ("absolute", "relative", "found", "is_near"),
    [
        (0.0, 0.0, "200", True),
        (0.0, 0.0, "200.0001", False),
        (0.5, 0.0, "200.5", True),
        (0.5, 0.0, "199.4", False),
        (0.0, 0.01, "202", True),  # 0.01 of the expected 200 is 2
        (0.0, 0.01, "197.9", False),
        (3.0, 0.01, "203", True),  # the larger one counts, not their sum
        (3.0, 0.01, "204", False),
    ],
)
def test_a_number_may_be_off_by_the_larger_tolerance(absolute, relative, found, is_near):
    assert holds("numeric", "200", found, Tolerance(absolute, relative)) == is_near


def test_a_pattern_is_searched_in_the_response_whatever_the_answer_in_it():
    rule = Rule("regex", r"(?i)\bbecause\b")
    assert rule.holds("Because of that.\n5", "5", NEAR)
    assert rule.holds("Because of that.", None, NEAR)
    assert not rule.holds("becauseof", "because", NEAR)
    assert Rule("regex", "^(?!.*sorry)").holds("fine", None, NEAR)


def test_without_an_answer_no_other_rule_holds():
    for match in ("exact", "normalised", "numeric"):
        assert not Rule(match, "5").holds("5", None, NEAR)


@pytest.mark.parametrize(
    ("match", "answer", "words"),
    [
        ("fuzzy", "x", "match must be one of exact, normalised, numeric, math_verify, regex, got 'fuzzy'"),
        ("normalised", "?!", "nothing left when normalised"),
        ("numeric", "five", "answer must be a number for match numeric, got 'five'"),
        ("numeric", "1e999", "answer must be a number"),
        ("regex", "(", "is no regular expression"),
    ],
)
def test_an_expected_answer_that_makes_no_sense_is_refused(match, answer, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        Rule(match, answer)


@pytest.mark.parametrize(
    "text", ["9" * 1_000_000, "1,111" * 200_000, "1," * 500_000, "-" * 1_000_000, "1e" * 500_000, "1 /" * 300_000]
)
def test_numbers_are_found_quickly_in_hostile_text(text):
    start = time.process_time()
    last_number(text)
    assert time.process_time() - start < 10


# Mathematics


def test_math_verify_is_refused_by_name_where_it_is_missing(monkeypatch):
    monkeypatch.setattr("resd_lightning.tasks.jsonl.rules.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"match math_verify needs the extra `math`: pip install 'resd-lightning\[math\]'"
    ):
        Rule("math_verify", "1")


@pytest.mark.parametrize(
    ("answer", "found", "is_same"),
    [
        (r"\frac{1}{2}", "0.5", True),
        (r"\frac{1}{2}", "$1/2$", True),
        ("(x+1)^2", "x^2 + 2x + 1", True),
        (r"3\sqrt{2}", "3", False),  # read without marks it would be 3
        ("2", "2^{10}", False),
        ("1024", "2^{10}", True),
        ("42", "The answer is 42.", True),
        ("42", "forty two", False),
        ("42", "}{$\\frac{", False),
        ("42", "", False),
    ],
)
def test_mathematics_is_compared_by_value(answer, found, is_same):
    pytest.importorskip("math_verify")
    assert holds("math_verify", answer, found) == is_same


def test_an_expected_answer_without_mathematics_raises():
    pytest.importorskip("math_verify")
    with pytest.raises(ValueError, match="reads no mathematics in the expected answer"):
        holds("math_verify", "$$", "1")


# Where the answer stands


@pytest.mark.parametrize(
    ("extraction", "text", "answer"),
    [
        (Extraction(), "  all\nof it ", "all\nof it"),
        (Extraction(), " \n ", None),
        (Extraction("last_line"), "so\n\n 42 \n\n", "42"),
        (Extraction("last_line"), "42", "42"),
        (Extraction("last_line"), "\n", None),
        (Extraction("after_marker", marker="####"), "#### 1\nno: #### 42 \nDone.", "42"),
        (Extraction("after_marker", marker="Answer:"), "Answer:\n\n42\nDone.", "42"),
        (Extraction("after_marker", marker="####"), "42 ####", None),
        (Extraction("after_marker", marker="####"), "42", None),
        (Extraction("pattern", pattern=r"\\boxed\{(.*?)\}"), r"\boxed{1} or \boxed{ 42 }.", "42"),
        (Extraction("pattern", pattern=r"\\boxed\{(.*?)\}"), "42", None),
        (Extraction("pattern", pattern=r"yes|is (\d+)"), "is 3, yes", None),  # the last match has no group
    ],
)
def test_the_answer_is_taken_from_where_the_config_says(extraction, text, answer):
    assert extraction.find(text) == answer


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("somewhere",), "answer_from must be one of response, last_line, after_marker, pattern, got 'somewhere'"),
        (
            ("after_marker",),
            "answer_marker is for data.task.init_args.answer_from after_marker and has to be set there",
        ),
        (("pattern",), "answer_pattern is for data.task.init_args.answer_from pattern"),
        (("last_line", "####"), "answer_marker is for"),
        (("after_marker", "####", "(x)"), "answer_pattern is for"),
        (("after_marker", " "), "answer_marker must be more than whitespace"),
        (("pattern", None, "("), "answer_pattern '(' is no regular expression"),
        (("pattern", None, "x"), "answer_pattern must be a pattern with one group, got 'x'"),
        (("pattern", None, "(x)(y)"), "answer_pattern must be a pattern with one group"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_by_key(arguments, words):
    with pytest.raises(ConfigError) as caught:
        Extraction(*arguments)
    assert words in str(caught.value)
    assert str(caught.value).startswith("data.task.init_args.answer_")
