from __future__ import annotations

import pytest

from resd_lightning.context.markdown import from_markdown, to_markdown
from resd_lightning.context.playbook import Playbook, PlaybookEntry

TEXTS = (
    "plain",
    "two\n\nparagraphs",
    "\nleading and trailing\n",
    "## e00009 (others)\n- helpful: 3\n> quoted\n>tight",
    "  indented  \n\ttab\r\nwindows\rmac\x0bfeed\u2028line",
    "`code` **bold** <b>|table|",
)


def test_every_playbook_reads_back_as_it_was() -> None:
    entries = tuple(
        PlaybookEntry(
            f"e{number:05d}", "formulas", text, number, 2, -3, 5, ("train-1", 'a "b"\n]'), ("e00001",) * (number % 2)
        )
        for number, text in enumerate(TEXTS, start=1)
    )
    playbook = Playbook((*entries, PlaybookEntry("own_id", "others", "last")), step=7, next_number=40)
    assert from_markdown(to_markdown(playbook)) == playbook
    assert from_markdown(to_markdown(Playbook())) == Playbook()


def test_a_person_needs_to_write_no_counts() -> None:
    playbook = from_markdown("## e1 (strategies)\n> Start small.\n")
    assert playbook.entries == (PlaybookEntry("e1", "strategies", "Start small."),)
    assert playbook.next_number == 2


def test_line_ends_of_windows_belong_to_the_file_and_not_to_the_lessons() -> None:
    written = to_markdown(Playbook().add("others", "one\ntwo"))
    assert from_markdown(written.replace("\n", "\r\n")) == from_markdown(written)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("## e1 (others)\n\njust words", r"line 3: expected '## id \(section\)'.*got 'just words'"),
        ("> a quotation", "line 1: expected"),
        ("## e1 others\n", "line 1: expected"),
        ("## e1 (others)\n- helpful: many\n> x", "line 2: helpful must be a JSON value, got 'many'"),
        ("## e1 (others)\n- helpful: 1\n- helpful: 2\n> x", "line 3: helpful stands twice"),
        ("## e1 (others)\n- helpful: -1\n> x", r"entries\[0\] \(id e1\): helpful must be a whole number of at least 0"),
        ("## e1 (others)\n- helpful: true\n> x", "helpful must be a whole number"),
        ("## e1 (others)\n", r"\(id e1\): text must be a text that isn't empty"),
        ("## e1 (poems)\n> x", "section must be one of strategies"),
        ("## e1 (others)\n> x\n## E1 (others)\n> y", "entry E1: the playbook has this id twice"),
        ("- next: 3\n", "unknown key 'next'"),
    ],
)
def test_what_is_no_playbook_is_refused_by_line_or_entry(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        from_markdown(text)
