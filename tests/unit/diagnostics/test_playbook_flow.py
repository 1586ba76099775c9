from __future__ import annotations

from resd_lightning.context.playbook import Playbook, PlaybookEntry
from resd_lightning.diagnostics.playbook_flow import playbook_flow


def entry(number: int, helpful: int, harmful: int, created_update: int, text: str = "false") -> PlaybookEntry:
    return PlaybookEntry(f"e0000{number}", "others", text, helpful, harmful, created_update=created_update)


BEFORE = Playbook(
    (entry(1, 1, 0, 0), entry(2, 0, 0, 0, "true"), entry(3, 2, 1, 2), entry(4, 0, 2, 3, "unclear")), next_number=5
)
# 1 stays helpful, 2 and 4 die, 3 turns harmful; 5 and 7 are born, 6 is born and dies.
AFTER = Playbook((entry(1, 2, 0, 0), entry(3, 2, 2, 2), entry(5, 1, 0, 6), entry(7, 0, 0, 6)), next_number=8)
VERDICTS = {"true": True, "false": False, "unclear": None}


def test_births_deaths_ages_and_turns_by_hand() -> None:
    assert playbook_flow({"": BEFORE}, {"": AFTER}, 6, VERDICTS.get) == {
        "playbook/births": 3,
        "playbook/deaths": 3,
        "playbook/age": (6 + 4 + 0 + 0) / 4,
        "playbook/helpful_share": 2 / 4,
        "playbook/harmful_share": 1 / 4,
        "playbook/turned_helpful": 0,  # 5 was never anything else
        "playbook/turned_harmful": 1,
        "playbook/true_deaths": 1,
    }


def test_an_entry_that_helps_for_the_first_time_turns_helpful() -> None:
    before, after = Playbook((entry(1, 0, 0, 0),), next_number=2), Playbook((entry(1, 1, 0, 0),), next_number=2)
    assert playbook_flow({"": before}, {"": after}, 1)["playbook/turned_helpful"] == 1


def test_playbooks_of_examples_add_up_and_new_ones_count_from_nothing() -> None:
    flow = playbook_flow({"a": BEFORE}, {"a": BEFORE, "b": AFTER}, 6)
    assert (flow["playbook/births"], flow["playbook/deaths"]) == (7, 3)
    assert "playbook/true_deaths" not in flow


def test_without_entries_nothing_is_divided_by() -> None:
    assert set(playbook_flow({}, {}, 0).values()) == {0.0}
