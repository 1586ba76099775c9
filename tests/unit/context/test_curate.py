import json
import time

import pytest

from resd_lightning.context.curate import (
    CURATION_SCHEMA,
    OPERATION_NAMES,
    Add,
    Delete,
    Merge,
    Proposal,
    Update,
    apply_operations,
    curation_schema,
    parse_operations,
)
from resd_lightning.context.playbook import Playbook, PlaybookEntry
from resd_lightning.records import Problem


def parse(operations, allowed=OPERATION_NAMES):
    return parse_operations(json.dumps({"reasoning": "r", "operations": operations}), allowed=allowed)


def kinds(parsed):
    return [str(problem.kind) for problem in parsed.problems]


def test_every_operation_is_read():
    parsed = parse(
        [
            {"type": "ADD", "section": "Code Snippets", "content": " x\n"},
            {"type": "update", "id": "[e00001]", "content": "y"},
            {"type": "MERGE", "ids": ["e00001", "e00002"], "section": "formulas", "content": "z"},
            {"type": "DELETE", "id": "e00003"},
        ]
    )
    assert parsed.problems == ()
    assert parsed.operations == (
        Add("code_snippets", "x"),
        Update("e00001", "y"),
        Merge(("e00001", "e00002"), "z", "formulas"),
        Delete("e00003"),
    )


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        (3, "wrong_type"),
        ({"content": "x"}, "missing_field"),
        ({"type": "REPLACE", "content": "x"}, "unknown_operation"),
        ({"type": ["ADD"], "content": "x"}, "unknown_operation"),
        ({"type": "ADD", "section": "others"}, "missing_field"),
        ({"type": "ADD", "section": "others", "content": "\u0000"}, "empty_text"),
        ({"type": "ADD", "section": "others", "content": "x" * 2001}, "text_too_long"),
        ({"type": "ADD", "section": "others", "content": {"a": 1}}, "wrong_type"),
        ({"type": "UPDATE", "content": "x"}, "missing_field"),
        ({"type": "UPDATE", "id": True, "content": "x"}, "wrong_type"),
        ({"type": "UPDATE", "id": "e1"}, "missing_field"),
        ({"type": "MERGE", "ids": "e1", "content": "x"}, "wrong_type"),
        ({"type": "MERGE", "ids": ["e1", 2], "content": "x"}, "wrong_type"),
        ({"type": "DELETE"}, "missing_field"),
        ({"type": "DELETE", "id": ""}, "empty_text"),
    ],
)
def test_one_bad_operation_is_dropped_and_the_rest_kept(operation, kind):
    parsed = parse([operation, {"type": "DELETE", "id": "e00001"}])
    assert kinds(parsed) == [kind]
    assert parsed.operations == (Delete("e00001"),)


def test_only_allowed_operations_are_read():
    parsed = parse([{"type": "DELETE", "id": "e1"}, {"type": "ADD", "section": "others", "content": "x"}], ("ADD",))
    assert kinds(parsed) == ["operation_not_allowed"]
    assert parsed.operations == (Add("others", "x"),)


@pytest.mark.parametrize(("section", "kind"), [("Misc", "unknown_section"), (3, "wrong_type"), (None, "missing_field")])
def test_a_lesson_outlives_a_bad_section(section, kind):
    parsed = parse([{"type": "ADD", "section": section, "content": "x"}])
    assert kinds(parsed) == [kind]
    assert parsed.operations == (Add("others", "x"),)


def test_answers_without_a_list_of_operations_have_none():
    assert kinds(parse_operations('{"reasoning": "nothing new"}', allowed=("ADD",))) == ["missing_field"]
    assert kinds(parse("none")) == ["wrong_type"]
    assert kinds(parse_operations("", allowed=("ADD",))) == ["empty"]
    assert parse([]).problems == ()


def test_a_cut_answer_keeps_its_whole_operations():
    text = json.dumps({"operations": [{"type": "ADD", "section": "others", "content": "one"}] * 2})
    parsed = parse_operations(text[: text.rindex("one") + 2], allowed=("ADD",))
    assert parsed.operations == (Add("others", "one"),)
    assert kinds(parsed) == ["truncated_json", "missing_field"]


def test_an_unknown_allowed_name_is_refused_by_key():
    with pytest.raises(ValueError, match=r"context\.operations: 'SPLIT' is none of ADD, UPDATE, MERGE, DELETE"):
        parse_operations("{}", allowed=("ADD", "SPLIT"))
    with pytest.raises(ValueError, match=r"context\.operations: 'add'"):
        curation_schema(("add",))


def test_the_schema_offers_the_allowed_operations_alone():
    def offered(schema):
        variants = schema["properties"]["operations"]["items"]["anyOf"]
        return [variant["properties"]["type"]["enum"][0] for variant in variants]

    assert offered(CURATION_SCHEMA) == list(OPERATION_NAMES)
    assert offered(curation_schema(("DELETE", "ADD"))) == ["ADD", "DELETE"]
    assert json.loads(json.dumps(CURATION_SCHEMA)) == CURATION_SCHEMA


def book():
    return Playbook(
        (
            PlaybookEntry("e00001", "strategies", "Walk right first.", 3, 1, 2, 0, ("a",)),
            PlaybookEntry("e00002", "formulas", "m17 reverse shift", 1, 0, 6, 1, ("b",)),
            PlaybookEntry("e00003", "others", "Check both ends.", 0, 2, -1, 2, ("a", "c")),
        ),
        step=7,
        next_number=10,
    )


def apply(*operations, playbook=None):
    return apply_operations(book() if playbook is None else playbook, [Proposal(operations, 4, "x")])


def test_an_addition_is_untagged_as_of_this_step_with_provenance():
    after, (applied,) = apply(Add("heuristics", "Look twice."))
    assert after.entries[:3] == book().entries
    assert after.entries[3] == PlaybookEntry("e00010", "heuristics", "Look twice.", 0, 0, 7, 4, ("x",))
    assert (after.next_number, after.step) == (11, 7)
    assert (applied.entry_id, applied.problem, applied.is_applied) == ("e00010", None, True)
    assert (applied.operation, applied.update, applied.example_id) == (Add("heuristics", "Look twice."), 4, "x")


def test_duplicates_of_entries_and_of_earlier_curators_are_not_added():
    proposals = [
        Proposal((Add("others", "M17: reverse shift."), Add("others", "New lesson!")), 4, "x"),
        Proposal((Add("strategies", "new lesson"), Add("others", "m18 reverse shift")), 4, "y"),
    ]
    after, applied = apply_operations(book(), proposals)
    assert [entry.text for entry in after.entries[3:]] == ["New lesson!", "m18 reverse shift"]
    assert [entry.sources for entry in after.entries[3:]] == [("x",), ("y",)]
    assert [(a.entry_id, a.problem and a.problem.kind) for a in applied] == [
        ("e00002", "duplicate"),
        ("e00010", None),
        ("e00010", "duplicate"),
        ("e00011", None),
    ]
    assert after.next_number == 12


def test_an_update_changes_the_text_in_place_and_keeps_the_track_record():
    after, (applied,) = apply(Update("E00001", "Walk right, then left."))
    assert after.entries[0] == PlaybookEntry("e00001", "strategies", "Walk right, then left.", 3, 1, 2, 0, ("a", "x"))
    assert after.entries[1:] == book().entries[1:]
    assert applied.entry_id == "e00001"


def test_an_entry_may_be_reworded_but_not_into_itself_or_another():
    after, (applied,) = apply(Update("e00001", "Walk right, first"))
    assert applied.is_applied
    assert after.entries[0].text == "Walk right, first"
    for text, kept in [("Walk right first.", "e00001"), ("check both ends", "e00003")]:
        after, (applied,) = apply(Update("e00001", text))
        assert after == book()
        assert (applied.entry_id, applied.problem.kind) == (kept, "duplicate")


def test_a_merge_sums_counts_and_takes_the_latest_step_under_a_fresh_id():
    after, (applied,) = apply(Merge(("e00003", "e00001", "e00003"), "Walk right and check both ends."))
    assert [entry.id for entry in after.entries] == ["e00002", "e00010"]
    assert after.entries[1] == PlaybookEntry(
        "e00010", "others", "Walk right and check both ends.", 3, 3, 2, 4, ("a", "c", "x"), ("e00003", "e00001")
    )
    assert applied.entry_id == "e00010"


def test_a_merge_may_keep_the_text_of_a_part_and_move_section():
    after, (applied,) = apply(Merge(("e00001", "e00003"), "Check both ends.", "heuristics"))
    assert applied.is_applied
    assert (after.entries[-1].section, after.entries[-1].text) == ("heuristics", "Check both ends.")


def test_a_merge_of_one_entry_or_into_another_is_refused():
    after, applied = apply(Merge(("e00001", "E00001"), "x y"), Merge(("e00001", "e00003"), "m17 Reverse shift"))
    assert after == book()
    assert [(a.entry_id, a.problem.kind) for a in applied] == [(None, "missing_field"), ("e00002", "duplicate")]


def test_a_deletion_removes_and_its_number_stays_used():
    after, (applied,) = apply(Delete("e00003"))
    assert [entry.id for entry in after.entries] == ["e00001", "e00002"]
    assert (applied.entry_id, after.next_number) == ("e00003", 10)


@pytest.mark.parametrize("later", [Delete("e00001"), Update("e00001", "y"), Merge(("e00002", "e00001"), "y")])
@pytest.mark.parametrize("first", [Delete("e00001"), Update("e00001", "z"), Merge(("e00003", "e00001"), "z")])
def test_of_several_operations_on_one_entry_the_first_wins(first, later):
    proposals = [Proposal((first,), 4, "x"), Proposal((later,), 4, "y")]
    after, applied = apply_operations(book(), proposals)
    assert after == apply(first)[0]
    assert [a.problem and a.problem.kind for a in applied] == [None, "conflict"]


@pytest.mark.parametrize("operation", [Delete("e00099"), Update("e00099", "y"), Merge(("e00001", "e00099"), "y")])
def test_unknown_ids_change_nothing(operation):
    after, (applied,) = apply(operation)
    assert after == book()
    assert applied.problem == Problem("unknown_id", "no entry 'e00099' in the playbook that the curator saw")


def test_an_id_made_in_this_update_is_unknown_to_its_curators():
    after, applied = apply(Add("others", "fresh words"), Delete("e00010"))
    assert [a.problem and a.problem.kind for a in applied] == [None, "unknown_id"]
    assert after.entries[-1].id == "e00010"


def test_the_text_of_a_deleted_entry_may_be_added_again():
    after, applied = apply(Delete("e00003"), Add("others", "Check both ends."))
    assert all(a.is_applied for a in applied)
    assert after.entries[-1].id == "e00010"


def test_no_proposals_change_nothing():
    assert apply_operations(book(), []) == (book(), ())


def test_ten_thousand_entries_are_curated_in_seconds():
    entries = tuple(
        PlaybookEntry(f"e{i:05d}", "others", f"rule {i} says turn " + "x" * (i % 7)) for i in range(1, 10_001)
    )
    large = Playbook(entries, next_number=10_001)
    operations = [Add("others", f"rule {i} says turn " + "x" * (i % 7)) for i in range(9_990, 10_021)]
    start = time.perf_counter()
    after, applied = apply(*operations, playbook=large)
    assert time.perf_counter() - start < 5.0
    assert sum(a.is_applied for a in applied) == 20
    assert len(after) == 10_020
