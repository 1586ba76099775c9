import io
import json
from dataclasses import replace

import pytest
import torch

from resd_lightning.context.playbook import Playbook, PlaybookEntry
from resd_lightning.records import Problem, Tag


def two_entries():
    return (
        Playbook(step=2)
        .add("strategies", "Reverse the tape.", update=5, source="x1")
        .add("formulas", "a + b \u00e9\n{{ y }}")
    )


@pytest.mark.parametrize(
    ("helpful", "harmful", "claim"),
    [
        (0, 0, "is_unused"),
        (0, 1, "is_harmful"),
        (2, 2, "is_harmful"),
        (1, 3, "is_harmful"),
        (1, 0, "is_helpful"),
        (3, 2, "is_helpful"),
    ],
)
def test_every_entry_is_of_exactly_one_class(helpful, harmful, claim):
    entry = PlaybookEntry("e00001", "others", "x", helpful, harmful, 0)
    assert [name for name in ("is_unused", "is_harmful", "is_helpful") if getattr(entry, name)] == [claim]
    assert entry.utility == helpful - harmful


def test_new_entries_are_untagged_as_of_this_step_with_their_provenance():
    playbook = two_entries()
    assert playbook.entries[0] == PlaybookEntry("e00001", "strategies", "Reverse the tape.", 0, 0, 2, 5, ("x1",))
    assert playbook.entries[1].id == "e00002"
    assert playbook.entries[1].sources == ()
    assert len(playbook) == 2


def test_ids_are_never_reused_after_pruning():
    pruned = two_entries().replace_entries(())
    assert len(pruned) == 0
    assert pruned.add("others", "new").entries[0].id == "e00003"


def test_tags_count_and_move_the_last_step_but_neutral_changes_nothing():
    before = two_entries().next_step().next_step()
    tags = [Tag("e00001", "helpful"), Tag("e00001", "helpful"), Tag("E00002", "harmful"), Tag("e00002", "neutral")]
    after, problems = before.apply_tags(tags)
    assert problems == ()
    assert [(e.helpful, e.harmful, e.last_step) for e in after.entries] == [(2, 0, 4), (0, 1, 4)]
    assert before.apply_tags([Tag("e00001", "neutral")])[0] == before


def test_a_tag_for_an_unknown_id_is_a_problem_and_the_rest_count():
    after, problems = two_entries().apply_tags([Tag("e00099", "helpful"), Tag("e00002", "helpful")])
    assert problems == (Problem("unknown_id", "tag 'helpful' for 'e00099', which no entry has"),)
    assert [e.helpful for e in after.entries] == [0, 1]


def test_changes_leave_the_old_playbook_as_it_was():
    before = two_entries()
    fingerprint = before.fingerprint()
    before.apply_tags([Tag("e00001", "helpful")])
    before.add("others", "x")
    assert before.fingerprint() == fingerprint


def test_json_and_dict_round_trips_are_exact():
    entry = PlaybookEntry("e00009", "others", "merged \u4e2d", 3, 1, -4, 7, ("a", "b"), ("e00001", "e00002"))
    playbook = replace(two_entries(), entries=(*two_entries().entries, entry), next_number=40)
    assert Playbook.from_json(playbook.to_json()) == playbook
    assert Playbook.from_dict(playbook.to_dict()) == playbook
    assert "\u4e2d" in playbook.to_json()


def test_to_dict_survives_a_checkpoint_read_with_weights_only():
    stored = io.BytesIO()
    torch.save(two_entries().to_dict(), stored)
    stored.seek(0)
    assert Playbook.from_dict(torch.load(stored, weights_only=True)) == two_entries()


def test_fingerprint_differs_iff_the_content_does():
    playbook = two_entries()
    assert playbook.fingerprint() == two_entries().fingerprint()
    others = [
        playbook.next_step(),
        playbook.replace_entries(reversed(playbook.entries)),
        playbook.apply_tags([Tag("e00001", "helpful")])[0],
        replace(playbook, next_number=9),
    ]
    assert len({playbook.fingerprint(), *(other.fingerprint() for other in others)}) == 5


def test_a_person_may_write_entries_alone():
    playbook = Playbook.from_json('{"entries": [{"id": "e00007", "section": "formulas", "text": "x"}]}')
    assert playbook == Playbook((PlaybookEntry("e00007", "formulas", "x"),), step=0, next_number=8)


def test_next_number_moves_past_an_id_that_reached_it():
    text = two_entries().to_json().replace("e00002", "E12")
    assert Playbook.from_json(text).next_number == 13


def edited(**changes):
    state = json.loads(two_entries().to_json())
    state["entries"][1].update(changes)
    return json.dumps(state)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"entries": [\n{"id": "a",,}]}', r"line 2, column 12"),
        ("[]", "must be an object with entries, got list"),
        ("{}", "entries must be a list, got NoneType"),
        ('{"entries": [3]}', r"entries\[0\] must be an object, got int"),
        ('{"entries": [], "steps": 3}', "unknown key 'steps'; the keys are step, next_number, entries"),
        ('{"entries": [], "step": -1}', "step must be a whole number of at least 0, got -1"),
        ('{"entries": [], "step": true}', "step must be a whole number"),
        ('{"entries": [], "entries": []}', "key 'entries' stands twice"),
        (edited(id="e00001"), "entry e00001: the playbook has this id twice"),
        (edited(id="E00001"), "entry E00001: the playbook has this id twice"),
        (edited(id="e 1"), r"entries\[1\]: id must be 1 to 64 letters"),
        (edited(id=7), r"entries\[1\]: id must be a text that isn't empty, got 7"),
        (edited(helpfull=1), r"entries\[1\] \(id e00002\): unknown key 'helpfull'"),
        (edited(helpful=-1), r"entries\[1\] \(id e00002\): helpful must be a whole number of at least 0, got -1"),
        (edited(harmful=1.5), r"harmful must be a whole number of at least 0, got 1\.5"),
        (edited(last_step=True), "last_step must be a whole number, got True"),
        (edited(text="  "), r"\(id e00002\): text must be a text that isn't empty"),
        (edited(text="\ud800"), "text holds half of a surrogate pair"),
        (edited(section="misc"), "section must be one of strategies, formulas, .* got 'misc'"),
        (edited(sources="x1"), "sources must be a list of texts, got 'x1'"),
    ],
)
def test_a_bad_playbook_is_refused_by_entry_and_field(text, message):
    with pytest.raises(ValueError, match=message):
        Playbook.from_json(text)


def test_negative_counts_and_reused_numbers_are_refused_when_built():
    with pytest.raises(ValueError, match="e1: helpful and harmful are counts, got -1, 0"):
        PlaybookEntry("e1", "others", "x", helpful=-1)
    with pytest.raises(ValueError, match="next_number must be above 5"):
        Playbook((PlaybookEntry("e00005", "others", "x"),), next_number=5)
