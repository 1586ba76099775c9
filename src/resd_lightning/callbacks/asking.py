"""How reflector, tagger and curator are asked: prompts within their limit, answers kept for transcripts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from resd_lightning.config import SamplingConfig
from resd_lightning.context.budget import fit
from resd_lightning.context.prompts import Sections, TemplateName
from resd_lightning.records import Answer, Problem, Purpose, Tag, UpdateRecord
from resd_lightning.rollout.chat import encode_prompt
from resd_lightning.rollout.engine import GenerationRequest, Schema

if TYPE_CHECKING:
    from resd_lightning.module import ResdModule


class Parsed(Protocol):
    """What a parser made of an answer."""

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Everything that was malformed."""
        ...


P = TypeVar("P", bound=Parsed)


@dataclass(frozen=True)
class Question(Generic[P]):
    """What is asked about each of some rollouts, and how the answers are read.

    Attributes:
        purpose: Reflect, tag or curate; also the template's name and the metrics' prefix.
        sampling: How answers are sampled.
        schema: JSON schema that a guided answer is held to.
        parse: Reads an answer; never raises.
    """

    purpose: Purpose
    sampling: SamplingConfig
    schema: Schema
    parse: Callable[[str], P]


def ask(
    question: Question[P], module: ResdModule, record: UpdateRecord, about: Sequence[tuple[int, Sections]]
) -> list[tuple[int, P]]:
    """Return the parsed answers about rollouts, with each rollout's index, in order.

    Prompts that don't fit their limit even after dropping sections are skipped and counted, and so is everything that
    was malformed in an answer; both go to the record.

    Args:
        question: What to ask.
        module: Its context settings hold limits and author.
        record: The update; gets the answers and counts.
        about: Index of each rollout asked about, and what its prompt may hold.
    """
    config, purpose = module.context_config, question.purpose
    template: TemplateName = question.purpose.value  # type: ignore[assignment]

    def length(index: int, sections: Sections) -> int:
        chat = record.rollouts[index].example.messages
        return len(encode_prompt(module.tokenizer, module.templates.messages(template, chat, sections)))

    asked: list[tuple[int, GenerationRequest]] = []
    for index, sections in about:
        rollout = record.rollouts[index]
        fitted = fit(sections, partial(length, index), config.max_prompt_tokens)
        if fitted is None:
            record.count(f"{purpose}/prompt_too_long")
            record.answers.append(
                Answer(purpose, index, (), "", (Problem("prompt_too_long", "the prompt did not fit its limit"),))
            )
            continue
        messages = module.templates.messages(template, rollout.example.messages, fitted)
        asked.append((index, GenerationRequest(purpose, record.update, rollout.example.id, rollout.sample, messages)))
    completions = module.data.generate(
        [request for _, request in asked],
        question.sampling,
        author=config.author,
        max_prompt_tokens=config.max_prompt_tokens,
        schema=question.schema if config.guided_json else None,
    )
    parsed = []
    for (index, request), completion in zip(asked, completions, strict=True):
        answer = question.parse(completion.text)
        record.answers.append(Answer(purpose, index, request.messages, completion.text, answer.problems))
        record.count(f"{purpose}/answers")
        record.count(f"{purpose}/truncated", completion.is_truncated)
        for problem in answer.problems:
            record.count(f"{purpose}/problem/{problem.kind}")
        parsed.append((index, answer))
    return parsed


def apply_tags(
    module: ResdModule, record: UpdateRecord, purpose: Purpose, verdicts: Sequence[tuple[int, Sequence[Tag]]]
) -> None:
    """Count each rollout's verdicts in the playbook that serves it (RESD Alg. 1 line 8).

    Args:
        module: Owner of the context.
        record: The update; gets the counts.
        purpose: Whose verdicts they are, for the metrics.
        verdicts: Index of each rollout, and the tags that its reflection gave.
    """
    for index, tags in verdicts:
        key = module.context.key(record.rollouts[index].example.id)
        playbook, problems = module.context.playbooks[key].apply_tags(tags)
        module.context.put_playbook(key, playbook)
        known = {entry.id.casefold() for entry in playbook.entries}
        for tag in tags:
            if tag.id.casefold() in known:
                record.count(f"playbook/tagged_{tag.tag}")
        for problem in problems:
            record.count(f"{purpose}/problem/{problem.kind}")
        _append_problems(record, purpose, index, problems)


def _append_problems(record: UpdateRecord, purpose: Purpose, index: int, problems: tuple[Problem, ...]) -> None:
    for position, answer in enumerate(record.answers):
        if answer.purpose == purpose and answer.rollout == index:
            record.answers[position] = replace(answer, problems=answer.problems + problems)
