from __future__ import annotations

from dataclasses import replace

import pytest

from resd_lightning.context.budget import fit
from resd_lightning.context.playbook import PlaybookEntry
from resd_lightning.context.prompts import Sections
from resd_lightning.records import Reflection

FULL = Sections(
    question="q" * 10,
    entries=(
        PlaybookEntry("e00001", "others", "x" * 5, helpful=2, last_step=9),  # utility 2
        PlaybookEntry("e00002", "others", "x" * 5, harmful=1, last_step=9),  # -1: the first to go
        PlaybookEntry("e00003", "others", "x" * 5, last_step=7),  # 0
        PlaybookEntry("e00004", "others", "x" * 5, last_step=3),  # 0 and older than e3
    ),
    reflection=Reflection("r" * 10),
    trial="t" * 10,
    feedback="old\nmid\nnew",
    solution="s" * 10,
)


def length(sections: Sections) -> int:
    """One token per character; the whole of FULL has 71."""
    entries = sum(len(entry.text) for entry in sections.entries)
    insight = len(sections.reflection.key_insight) if sections.reflection else 0
    texts = (sections.question, sections.trial, sections.feedback, sections.solution)
    return entries + insight + sum(map(len, texts))


def ids(sections: Sections | None) -> list[str]:
    assert sections is not None
    return [entry.id for entry in sections.entries]


@pytest.mark.parametrize("limit", [71, 72, 1000])
def test_what_fits_is_left_as_it_is(limit: int) -> None:
    assert fit(FULL, length, limit) is FULL


@pytest.mark.parametrize(
    ("limit", "kept"),
    [
        (70, ["e00001", "e00003", "e00004"]),
        (66, ["e00001", "e00003", "e00004"]),
        (65, ["e00001", "e00003"]),  # of equal utility the longest-untagged goes first
        (60, ["e00001"]),
        (51, []),
    ],
)
def test_lessons_of_low_utility_go_first_and_no_more_than_needed(limit: int, kept: list[str]) -> None:
    fitted = fit(FULL, length, limit)
    assert ids(fitted) == kept
    assert fitted == replace(FULL, entries=fitted.entries)


def test_then_the_trial_goes_whole_and_entries_come_back_into_its_room() -> None:
    without_trial = replace(FULL, trial="")
    best = FULL.entries[0]
    assert fit(FULL, length, 50) == replace(without_trial, entries=(best,))
    assert fit(FULL, length, 46) == replace(without_trial, entries=(best,))
    assert fit(FULL, length, 45) == replace(without_trial, entries=())
    assert fit(FULL, length, 41) == replace(without_trial, entries=())


@pytest.mark.parametrize(
    ("limit", "feedback"), [(40, "mid\nnew"), (37, "mid\nnew"), (36, "new"), (33, "new"), (30, "")]
)
def test_then_feedback_goes_from_its_oldest_line_on(limit: int, feedback: str) -> None:
    assert fit(FULL, length, limit) == replace(FULL, entries=(), trial="", feedback=feedback)


def test_question_reflection_and_solution_are_never_cut() -> None:
    assert fit(FULL, length, 29) is None
    assert fit(Sections("question"), length, 7) is None


def test_the_search_for_the_least_drop_asks_logarithmically_often() -> None:
    entries = tuple(PlaybookEntry(f"e{n:05d}", "others", "x", last_step=n) for n in range(1, 1001))
    asked = []

    def counted(sections: Sections) -> int:
        asked.append(sections)
        return length(sections)

    fitted = fit(Sections("q", entries), counted, 401)
    assert [entry.last_step for entry in fitted.entries] == list(range(601, 1001))
    assert len(asked) <= 13
