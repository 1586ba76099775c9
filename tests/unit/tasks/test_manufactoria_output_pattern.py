from __future__ import annotations

import random
import re
import time

import pytest

from resd_lightning.tasks.manufactoria.output_pattern import matches_output


@pytest.mark.parametrize(
    ("expected", "tape", "is_match"),
    [
        ("", "", True),
        ("", "R", False),
        ("RB", "RB", True),
        ("RB", "RBR", False),
        ("R*", "", True),
        ("R*", "RRR", True),
        ("R+B?", "RR", True),
        ("R+B?", "B", False),
        ("^[RB]*G$", "RBBG", True),
        ("[^R]{2}", "BG", True),
        ("[^R]{2}", "BR", False),
        ("(RB|Y){1,2}", "RBY", True),
        ("(RB|Y){1,2}", "YYY", False),
        ("(?:R.)*?", "RGRR", True),
        ("R{2,}", "R", False),
        ("R{0}", "", True),
    ],
)
def test_expression_matches_the_whole_tape(expected, tape, is_match):
    assert matches_output(expected, tape) is is_match


@pytest.mark.parametrize(
    "text", ["(R", "R)", "*R", "R{3,1}", r"(R)\1", "(?=R)R", "[R-B]", "[R--B]", "r*", "(" * 150, "R{999}"]
)
def test_invalid_or_unsupported_expression_is_compared_as_text(text):
    assert matches_output(text, text)
    assert not matches_output(text, "R")


def test_agrees_with_re_on_random_expressions():
    rng = random.Random(5)
    compared = matched = 0
    for _ in range(1500):
        pattern = "".join(
            rng.choices(["R", "B", ".", "[RB]", "(R|BG)", "(", ")", "|", "*", "+", "?", "{1,2}"], k=rng.randint(1, 7))
        )
        try:
            compiled = re.compile(pattern)
        except re.error:
            continue
        if re.search(r"[*+?}]\+", pattern):  # possessive: refused here, on purpose
            continue
        for _ in range(4):
            tape = "".join(rng.choices("RBG", k=rng.randint(0, 5)))
            assert matches_output(pattern, tape) == (compiled.fullmatch(tape) is not None), (pattern, tape)
            compared += 1
            matched += matches_output(pattern, tape)
    assert compared > 1000
    assert 100 < matched < compared


@pytest.mark.parametrize("pattern", ["(R*)*B", "(R|R)*B", "(R?){60}B", "R*R*R*R*R*R*R*R*B"])
def test_catastrophic_expressions_are_answered_quickly(pattern):
    started = time.perf_counter()
    assert not matches_output(pattern, "R" * 900)
    assert time.perf_counter() - started < 10
