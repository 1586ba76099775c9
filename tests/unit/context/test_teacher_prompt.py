from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from resd_lightning.config import TeacherPromptConfig
from resd_lightning.context.playbook import PlaybookEntry
from resd_lightning.context.prompts import PromptTemplates, Sections
from resd_lightning.context.teacher_prompt import build_teacher_prompt, choose_sections, choose_solution
from resd_lightning.records import Completion, Example, Feedback, Message, Reflection, Rollout

EXAMPLE = Example("x", (Message(role="user", content="Why?"),), None)
ENTRIES = (PlaybookEntry("e00001", "others", "Think."),)
CONFIG = TeacherPromptConfig()
TEMPLATES = PromptTemplates()


def rollout(text: str, *, is_success: bool = False, sample: int = 0, feedback: str = "No.") -> Rollout:
    completion = Completion(text, (1, 2, 3), (4, 5))
    return Rollout(EXAMPLE, sample, completion, Feedback(float(is_success), (is_success,), feedback))


def encode(messages: Sequence[Message]) -> tuple[int, ...]:
    return tuple(messages[-1]["content"].encode())


# Which solution

FAILED = rollout("<think>a</think>wrong")
RIGHT = rollout("<think>b</think>right", is_success=True, sample=1)
ALSO_RIGHT = rollout("right too", is_success=True, sample=2)


def test_a_success_is_its_own_solution_before_peers_and_buffer() -> None:
    assert choose_solution(RIGHT, [ALSO_RIGHT, RIGHT], "cached", CONFIG) == "right"


def test_a_failure_is_shown_a_peer_before_the_buffer() -> None:
    assert choose_solution(FAILED, [FAILED, RIGHT, ALSO_RIGHT], "cached", CONFIG) == "right"
    assert choose_solution(FAILED, [FAILED], "<think>c</think>cached", CONFIG) == "cached"
    assert choose_solution(FAILED, [FAILED], None, CONFIG) == ""


def test_without_self_success_a_success_is_shown_nothing() -> None:
    config = TeacherPromptConfig(self_success="none")
    assert choose_solution(RIGHT, [RIGHT, ALSO_RIGHT], "cached", config) == ""
    assert choose_solution(FAILED, [FAILED, RIGHT], None, config) == "right"


def test_peer_success_leaves_out_only_the_rollout_itself() -> None:
    config = TeacherPromptConfig(self_success="peer")
    assert choose_solution(RIGHT, [RIGHT, ALSO_RIGHT], None, config) == "right too"
    # The buffer took this success itself a moment ago.
    assert choose_solution(RIGHT, [RIGHT], "right", config) == ""


# Which sections


def test_a_failure_is_shown_all_it_has() -> None:
    reflected = replace(FAILED, reflection=Reflection("insight"))
    assert choose_sections(reflected, ENTRIES, "", CONFIG) == Sections(
        "Why?", ENTRIES, Reflection("insight"), "wrong", "No.", ""
    )


def test_feedback_is_held_back_beside_a_solution_unless_asked_for() -> None:
    assert choose_sections(FAILED, (), "right", CONFIG).feedback == ""
    both = replace(CONFIG, feedback_with_solution=True)
    assert choose_sections(FAILED, (), "right", both).feedback == "No."
    # A solution that isn't shown holds nothing back.
    assert choose_sections(FAILED, (), "right", replace(CONFIG, solution=False)).feedback == "No."


def test_a_success_has_neither_trial_nor_feedback() -> None:
    both = replace(CONFIG, feedback_with_solution=True)
    for config, solution in ((CONFIG, "right"), (both, "right"), (CONFIG, "")):
        assert choose_sections(RIGHT, ENTRIES, solution, config).names() == {"playbook"} | (
            {"solution"} if solution else set()
        )


@pytest.mark.parametrize("switch", ["playbook", "reflection", "trial", "feedback", "solution"])
def test_each_switch_takes_out_its_own_section(switch: str) -> None:
    reflected = replace(FAILED, reflection=Reflection("insight"))
    config = replace(CONFIG, feedback_with_solution=True)
    full = choose_sections(reflected, ENTRIES, "right", config).names()
    assert full == {"playbook", "reflection", "trial", "feedback", "solution"}
    assert choose_sections(reflected, ENTRIES, "right", replace(config, **{switch: False})).names() == full - {switch}


# The prompt and the record of it


@pytest.mark.parametrize(
    ("sections", "is_enriched"),
    [
        (Sections("Why?"), False),
        (Sections("Why?", ENTRIES), False),  # a playbook alone doesn't count
        (Sections("Why?", ENTRIES, trial="wrong"), False),  # nor does the trial, which says nothing new
        (Sections("Why?", reflection=Reflection("insight")), True),
        (Sections("Why?", feedback="No."), True),
        (Sections("Why?", solution="right"), True),
    ],
)
def test_prompt_is_plain_iff_nothing_is_known_of_the_rollout(sections: Sections, is_enriched: bool) -> None:
    prompt = build_teacher_prompt(FAILED, sections, TEMPLATES, encode, 10_000)
    assert prompt.is_enriched == is_enriched
    assert not prompt.is_skipped
    if is_enriched:
        assert prompt.sections == sections.names()
        assert prompt.token_ids == encode(prompt.messages)
        assert prompt.messages[-1]["content"] == TEMPLATES.render("teacher", sections)
    else:
        assert prompt.messages == EXAMPLE.messages
        assert prompt.token_ids == FAILED.completion.prompt_ids  # the very tokens the student saw


def test_the_record_names_only_sections_that_were_not_dropped() -> None:
    sections = Sections("Why?", ENTRIES, Reflection("insight"), "t" * 500, "No.")
    whole = build_teacher_prompt(FAILED, sections, TEMPLATES, encode, 10_000)
    fitted = build_teacher_prompt(FAILED, sections, TEMPLATES, encode, 400)
    assert whole.sections == {"playbook", "reflection", "trial", "feedback"}
    assert fitted.sections == {"playbook", "reflection", "feedback"}  # the trial's room is the entries' again
    assert len(fitted.token_ids) <= 400 < len(whole.token_ids)
    assert "t" * 500 not in fitted.messages[-1]["content"]


def test_a_prompt_that_does_not_fit_is_plain_and_marked_as_skipped() -> None:
    sections = Sections("Why?", solution="s" * 500)
    prompt = build_teacher_prompt(FAILED, sections, TEMPLATES, encode, 400)
    assert (prompt.is_skipped, prompt.is_enriched) == (True, False)
    assert prompt.token_ids == FAILED.completion.prompt_ids


def test_a_prompt_that_lost_all_it_had_to_say_is_skipped_too() -> None:
    # Only the feedback made it informative, and all of its one line must go.
    prompt = build_teacher_prompt(FAILED, Sections("Why?", ENTRIES, feedback="f" * 500), TEMPLATES, encode, 400)
    assert (prompt.is_skipped, prompt.sections) == (True, frozenset())
