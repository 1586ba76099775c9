from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from resd_lightning.config import ConfigError
from resd_lightning.context.files import read_playbooks
from resd_lightning.context.playbook import Playbook, PlaybookEntry
from resd_lightning.playbook_command.merge import merge, merge_playbooks

A = Playbook(
    (
        PlaybookEntry("e00001", "others", "m1 copy keep", 3, 1, 9, sources=("x",)),
        PlaybookEntry("e00004", "others", "m2 left", 0, 0, 4),
    ),
    step=10,
    next_number=7,
)
B = Playbook(
    (
        PlaybookEntry("E00001", "formulas", "m3 right", 1, 0, 2),
        PlaybookEntry("e00002", "others", "M1 copy keep.", 2, 2, 4, sources=("y", "x")),
        PlaybookEntry("mine", "others", "m4 shift", 0, 1, 1),
    ),
    step=4,
    next_number=3,
)


def test_lessons_that_say_the_same_become_one_with_all_their_counts() -> None:
    merged = merge_playbooks([A, B])
    first = merged.entries[0]
    assert first == replace(A.entries[0], helpful=5, harmful=3, last_step=10, sources=("x", "y"))
    assert [entry.text for entry in merged.entries] == ["m1 copy keep", "m2 left", "m3 right", "m4 shift"]


def test_ids_are_unique_whatever_their_case_and_entries_stay_as_old_as_they_were() -> None:
    merged = merge_playbooks([A, B])
    assert [entry.id for entry in merged.entries] == ["e00001", "e00004", "e00007", "mine"]
    assert (merged.step, merged.next_number) == (10, 8)
    assert [merged.step - entry.last_step for entry in merged.entries] == [0, 6, 2, 3]


def test_duplicates_within_one_playbook_merge_too() -> None:
    twice = Playbook((A.entries[0], replace(A.entries[0], id="e2", helpful=1)), next_number=3)
    assert [(entry.id, entry.helpful) for entry in merge_playbooks([twice]).entries] == [("e00001", 4)]


def test_merging_files_writes_a_new_one(tmp_path: Path) -> None:
    sources = [str(tmp_path / name) for name in ("a.json", "b.json")]
    for source, playbook in zip(sources, (A, B), strict=True):
        Path(source).write_text(playbook.to_json())
    out = tmp_path / "all.md"
    merge(sources, out=str(out))
    assert read_playbooks(out) == {"": merge_playbooks([A, B])}
    with pytest.raises(ConfigError, match=r"all.md exists already"):
        merge(sources, out=str(out))
    with pytest.raises(ConfigError, match="two playbooks or more, got 1"):
        merge(sources[:1], out="x.json")
    with pytest.raises(ConfigError, match="no folder at"):
        merge(sources, out=str(tmp_path / "nowhere" / "x.json"))
