from __future__ import annotations

import html
import re

from resd_lightning.callbacks.tensorboard_text import changes_table, marked_prompt, transcript_text
from resd_lightning.context.difference import differences
from resd_lightning.context.playbook import Playbook, PlaybookEntry
from resd_lightning.records import Completion, Example, Feedback, Message, Rollout, TeacherPrompt


def test_half_a_surrogate_pair_is_shown_as_a_question_mark() -> None:
    example = Example("e", (Message(role="user", content="What is \ud83d?"),), "")
    feedback = Feedback(0.0, (False,), "it raised ValueError: \ud800")
    rollout = Rollout(example, 0, Completion("I say \udfff.", (), ()), feedback)
    text = transcript_text(rollout, [], TeacherPrompt(example.messages, (), frozenset()))
    assert text.encode("utf-8").count(b"?") == 4


def test_changes_of_the_playbook_are_a_table_that_a_lesson_cannot_break() -> None:
    was, now = PlaybookEntry("e00001", "others", "a|b", helpful=1), PlaybookEntry("e00001", "others", "a|b", helpful=2)
    born = PlaybookEntry("e00002", "others", "<b>\nnew")
    before, after = Playbook((was,), next_number=2), Playbook((now, born), next_number=3)
    rows = changes_table(list(differences({"": before}, {"": after}))).splitlines()[2:]
    assert rows == [
        "| tagged | e00001 | (others) a&#124;b | 1 -> 2 | 0 | 0 |",
        "| born | e00002 | (others) &lt;b&gt;<br>new | 0 | 0 | 0 |",
    ]


def test_a_teachers_prompt_is_shown_section_by_section_with_nothing_lost() -> None:
    text = "Lessons\n- one\n\nWhat is it?\n\nIt said <no>."
    prompt = TeacherPrompt(
        (Message(role="user", content=text),),
        (),
        frozenset({"playbook", "feedback"}),
        spans=(("playbook", 8, 13), ("feedback", text.index("It"), len(text))),
    )
    shown = marked_prompt(prompt)
    assert re.findall(r"\*\*(\w+)\*\*\n\n<pre>(.*?)</pre>", shown, re.DOTALL) == [
        ("playbook", "- one"),
        ("feedback", "It said &lt;no&gt;."),
    ]
    parts = re.findall(r"<pre>(.*?)</pre>", shown, re.DOTALL)
    assert html.unescape("".join(parts)) == text
