from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from resd_lightning.context.playbook import PlaybookEntry
from resd_lightning.context.prompts import PromptTemplates, Sections
from resd_lightning.context.teacher_prompt import build_teacher_prompt
from resd_lightning.diagnostics.sections import section_ablations, spaced
from resd_lightning.records import Completion, Example, Feedback, Message, Reflection, Rollout

CHAT = (Message(role="system", content="Be brief."), Message(role="user", content="q"))
ENTRIES = (PlaybookEntry("e1", "others", "b", helpful=2), PlaybookEntry("e2", "others", "c"))
ROLLOUT = Rollout(Example("x", CHAT, None), 0, Completion("t", (1,), (2,)), Feedback(0.0, (), "f"))
MICRO = PromptTemplates("micro")


def encode(messages: Sequence[Message]) -> tuple[int, ...]:
    return tuple(messages[-1]["content"].encode())


def ablated(sections: Sections, max_tokens: int = 1000) -> dict[str, str]:
    """The last message of each prompt; all before it must be the example's."""
    prompt = build_teacher_prompt(ROLLOUT, sections, MICRO, encode, max_tokens)
    chats = section_ablations(prompt, CHAT, sections, MICRO, lambda chat: len(encode(chat)), max_tokens)
    assert chats["full"] == prompt.messages
    assert all(chat[:-1] == CHAT[:-1] for chat in chats.values())
    return {name: chat[-1]["content"] for name, chat in chats.items()}


def test_each_section_that_a_prompt_holds_is_left_out_once() -> None:
    assert ablated(Sections("q", ENTRIES[:1], Reflection("r"), "t", "f", "s")) == {
        "full": "book b e1 ; solved s tried t said f insight r q",
        "without_playbook": "solved s tried t said f insight r q",
        "without_reflection": "book b e1 ; solved s tried t said f q",
        "without_trial": "book b e1 ; solved s said f insight r q",
        "without_feedback": "book b e1 ; solved s tried t insight r q",
        "without_solution": "book b e1 ; tried t said f insight r q",
        "nothing": "q",
    }


def test_each_section_stands_alone_where_that_is_asked_for() -> None:
    sections = Sections("q", ENTRIES[:1], Reflection("r"), "t")
    prompt = build_teacher_prompt(ROLLOUT, sections, MICRO, encode, 1000)
    chats = section_ablations(prompt, CHAT, sections, MICRO, lambda chat: len(encode(chat)), 1000, alone=True)
    assert {name: chat[-1]["content"] for name, chat in chats.items() if name.startswith("only_")} == {
        "only_playbook": "book b e1 ; q",
        "only_reflection": "insight r q",
        "only_trial": "tried t q",
    }


def test_what_remains_is_shown_though_training_would_mask_it() -> None:
    assert ablated(Sections("q", ENTRIES[:1], trial="t", feedback="f"))["without_feedback"] == "book b e1 ; tried t q"
    assert ablated(Sections("q", feedback="f")) == {"full": "said f q", "without_feedback": "q", "nothing": "q"}


def test_what_the_limit_dropped_stays_dropped() -> None:
    sections = Sections("q", ENTRIES, Reflection("r"), "t", "f")
    # `book b e1 ; tried t said f insight r q` has 39 characters; of the entries the one that never helped goes.
    assert ablated(sections, 39) == {
        "full": "book b e1 ; tried t said f insight r q",
        "without_playbook": "tried t said f insight r q",
        "without_reflection": "book b e1 ; tried t said f q",
        "without_trial": "book b e1 ; said f insight r q",
        "without_feedback": "book b e1 ; tried t insight r q",
        "nothing": "q",
    }
    assert set(ablated(sections, 20)) == {"full", "without_reflection", "without_feedback", "nothing"}


def test_sections_that_are_not_the_prompts_are_refused() -> None:
    sections = Sections("q", reflection=Reflection("r"))
    prompt = build_teacher_prompt(ROLLOUT, sections, MICRO, encode, 1000)
    with pytest.raises(RuntimeError, match=r"holds \['reflection'\]"):
        section_ablations(prompt, CHAT, replace(sections, solution="s"), MICRO, lambda chat: len(encode(chat)), 1000)


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, [9]), (2, [0, 9]), (3, [0, 4, 9]), (4, [0, 3, 6, 9]), (9, [0, 1, 2, 3, 4, 5, 6, 7, 9]), (10, list(range(10)))],
)
def test_spaced_items_reach_from_first_to_last(count: int, expected: list[int]) -> None:
    assert spaced(range(10), count) == expected


def test_where_there_are_fewer_all_are_taken() -> None:
    assert spaced([3, 1], 5) == [3, 1]
    assert spaced([], 5) == []
