"""The teacher's prompt: the question, enriched by what the update learned (RESD Alg. 1 lines 14 and 15)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from resd_lightning.config import TeacherPromptConfig
from resd_lightning.context.budget import fit
from resd_lightning.context.marks import section_spans
from resd_lightning.context.playbook import PlaybookEntry
from resd_lightning.context.prompts import PromptTemplates, Sections
from resd_lightning.records import Message, Rollout, TeacherPrompt
from resd_lightning.thinking import strip_thinking

Encode = Callable[[Sequence[Message]], tuple[int, ...]]

INFORMATIVE = frozenset({"reflection", "feedback", "solution"})
"""A prompt with none of these says nothing about this rollout: a playbook alone doesn't count as enrichment."""


def choose_solution(rollout: Rollout, peers: Sequence[Rollout], cached: str | None, config: TeacherPromptConfig) -> str:
    """Return the solution to show beside `rollout`, without its thinking; empty for none.

    The rollout itself if it succeeded (`self_success` own), else a successful peer of the same prompt in this batch,
    else the buffer's B(x). `self_success` peer leaves out only the rollout itself, none gives a success no solution.

    Args:
        rollout: The response to be scored.
        peers: All rollouts of its prompt in this update, itself included.
        cached: The buffer's solution of its prompt.
        config: Its `self_success` decides what a success is shown.
    """
    if rollout.is_success and config.self_success == "none":
        return ""
    if rollout.is_success and config.self_success == "own":
        return strip_thinking(rollout.completion.text)
    others = [peer for peer in peers if peer.is_success and peer.sample != rollout.sample]
    if others:
        return strip_thinking(others[0].completion.text)
    # The buffer already holds this update's successes: for a lone success it would be the rollout's own answer again.
    return "" if cached is None or rollout.is_success else strip_thinking(cached)


def choose_sections(
    rollout: Rollout,
    entries: tuple[PlaybookEntry, ...],
    solution: str,
    config: TeacherPromptConfig,
) -> Sections:
    """Return the sections that the switches of `config` leave for this rollout.

    The trial is a failed response; a success is shown as a solution or not at all. Feedback is held back where a
    solution is shown, unless `feedback_with_solution`.
    """
    shown_solution = solution if config.solution else ""
    shows_feedback = config.feedback and (not shown_solution or config.feedback_with_solution)
    return Sections(
        question=rollout.example.question,
        entries=entries if config.playbook else (),
        reflection=rollout.reflection if config.reflection else None,
        trial=strip_thinking(rollout.completion.text) if config.trial and not rollout.is_success else "",
        feedback=rollout.feedback.text if shows_feedback and not rollout.is_success else "",
        solution=shown_solution,
    )


def plain_prompt(rollout: Rollout) -> TeacherPrompt:
    """Return the student's own prompt as a teacher's, which masks the rollout out of the distillation."""
    return TeacherPrompt(rollout.example.messages, rollout.completion.prompt_ids, frozenset())


def build_teacher_prompt(
    rollout: Rollout, sections: Sections, templates: PromptTemplates, encode: Encode, max_tokens: int
) -> TeacherPrompt:
    """Return the teacher's prompt for one rollout: enriched, or plain where its sections say nothing about it.

    Args:
        rollout: The response to be scored.
        sections: What the teacher may be told.
        templates: Renders the teacher template.
        encode: Tokens of a chat up to where the response begins.
        max_tokens: Limit of the enriched prompt; what doesn't fit after dropping is plain and marked as skipped.
    """
    chat = rollout.example.messages
    plain = plain_prompt(rollout)
    if not sections.names() & INFORMATIVE:
        return plain

    def tokens(candidate: Sections) -> tuple[int, ...]:
        return encode(templates.messages("teacher", chat, candidate))

    fitted = fit(sections, lambda candidate: len(tokens(candidate)), max_tokens)
    if fitted is None or not fitted.names() & INFORMATIVE:
        return replace(plain, is_skipped=True)
    messages = templates.messages("teacher", chat, fitted)
    spans = section_spans(lambda marked: templates.render("teacher", marked), fitted, messages[-1]["content"])
    return TeacherPrompt(messages, tokens(fitted), fitted.names(), spans=spans)
