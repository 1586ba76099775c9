"""The teacher's prompt without each of its sections, to see what each is worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from resd_lightning.context.budget import fit
from resd_lightning.context.prompts import SECTION_NAMES, PromptTemplates, Sections
from resd_lightning.records import Message, TeacherPrompt

FULL, NOTHING = "full", "nothing"
"""Names of the prompt as the teacher has it, and of the student's."""
WITHOUT, ONLY = "without_", "only_"
"""Before a section's name, the names of the prompt that lacks it, and of the one that holds nothing else."""

Chat = tuple[Message, ...]
T = TypeVar("T")


def section_ablations(
    prompt: TeacherPrompt,
    chat: Chat,
    sections: Sections,
    templates: PromptTemplates,
    count_tokens: Callable[[Chat], int],
    max_tokens: int,
    *,
    alone: bool = False,
) -> dict[str, Chat]:
    """Return, by name, an enriched teacher prompt as it is, without each section that it holds, and with none.

    A prompt that has lost a section may be one that training would mask; it is rendered all the same.

    Args:
        prompt: The teacher's prompt.
        chat: The example's own, which the teacher's enriches.
        sections: What the teacher might have been told; fitted to the limit here as the prompt was.
        templates: Render the teacher template.
        count_tokens: Length of a chat up to where the response begins.
        max_tokens: Limit of the teacher's prompt.
        alone: Each section alone, too.
    """

    def render(shown: Sections) -> Chat:
        return templates.messages("teacher", chat, shown) if shown.names() else chat

    fitted = fit(sections, lambda candidate: count_tokens(render(candidate)), max_tokens)
    if fitted is None or fitted.names() != prompt.sections:
        raise RuntimeError(f"the teacher's prompt holds {sorted(prompt.sections)}, but its sections say otherwise")
    held = [name for name in SECTION_NAMES if name in prompt.sections]
    without = {f"{WITHOUT}{name}": render(fitted.without(name)) for name in held}
    only = {f"{ONLY}{name}": render(fitted.only(name)) for name in held if alone}
    return {FULL: prompt.messages, **without, **only, NOTHING: chat}


def spaced(items: Sequence[T], count: int) -> list[T]:
    """Return `count` of the items, evenly spaced from the first to the last; all where there are no more, no chance."""
    if len(items) <= count:
        return list(items)
    if count == 1:
        return [items[-1]]
    return [items[i * (len(items) - 1) // (count - 1)] for i in range(count)]
