from __future__ import annotations

import random
from collections import Counter
from itertools import product

import pytest

from resd_lightning.micro.world import COLOURS, RULES, TEST_TAPE, Rule, deal_rules, draw_tape, tells_rules_apart


def test_each_rule_does_what_its_name_says() -> None:
    tape = ("R", "B", "B", "G")
    assert Rule("copy", "keep").apply(tape) == ("R", "B", "B", "G")
    assert Rule("reverse", "keep").apply(tape) == ("G", "B", "B", "R")
    assert Rule("left", "keep").apply(tape) == ("B", "B", "G", "R")
    assert Rule("right", "keep").apply(tape) == ("G", "R", "B", "B")
    assert Rule("copy", "swapRB").apply(tape) == ("B", "R", "R", "G")
    assert Rule("copy", "swapYG").apply(("Y", "G", "R", "B")) == ("G", "Y", "R", "B")
    assert Rule("copy", "shift").apply(("R", "B", "G", "Y")) == ("B", "G", "Y", "R")
    assert Rule("reverse", "shift").apply(tape) == ("Y", "G", "G", "B")


def test_the_test_tape_names_the_rule() -> None:
    assert len({rule.apply(TEST_TAPE) for rule in RULES}) == 16


def test_a_guess_is_right_once_in_sixteen_on_every_drawn_tape() -> None:
    rng = random.Random(0)
    for _ in range(300):
        tape = draw_tape(rng, (4, 5, 6))
        outputs = Counter(rule.apply(tape) for rule in RULES)
        assert set(outputs.values()) == {1}
        assert tape != TEST_TAPE


def test_most_tapes_do_not_tell_the_rules_apart_and_are_never_drawn() -> None:
    usable = [tape for tape in product(COLOURS, repeat=4) if tells_rules_apart(tape)]
    assert 50 < len(usable) < 200


@pytest.mark.parametrize("num_machines", [16, 32, 48, 64])
def test_every_rule_is_dealt_equally_often(num_machines: int) -> None:
    dealt = Counter(deal_rules(7, num_machines).values())
    assert set(dealt.values()) == {num_machines // 16}
    assert len(dealt) == 16


def test_the_mapping_seed_is_another_world() -> None:
    assert deal_rules(0, 32) != deal_rules(1, 32)
    assert deal_rules(5, 32) == deal_rules(5, 32)


@pytest.mark.parametrize("num_machines", [0, 8, 40, 80])
def test_a_number_of_machines_that_cannot_be_dealt_is_refused_by_name(num_machines: int) -> None:
    with pytest.raises(ValueError, match="num_machines"):
        deal_rules(0, num_machines)
