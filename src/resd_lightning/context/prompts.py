"""The sections a context prompt is made of, and the templates that lay them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from jinja2 import BaseLoader, ChoiceLoader, FileSystemLoader, PackageLoader, StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from resd_lightning.config import ConfigError, OperationName
from resd_lightning.context.playbook import SECTIONS, PlaybookEntry
from resd_lightning.records import Message, Reflection

TemplateName = Literal["teacher", "reflect", "tag", "curate"]
SectionName = Literal["playbook", "reflection", "trial", "feedback", "solution"]
SECTION_NAMES: tuple[SectionName, ...] = ("playbook", "reflection", "trial", "feedback", "solution")
MICRO = "micro"
TEMPLATES: tuple[TemplateName, ...] = ("teacher", "reflect", "tag", "curate")


@dataclass(frozen=True)
class Sections:
    """What a teacher, reflector or curator may be shown about one rollout; empty fields are left out of the prompt.

    Attributes:
        question: The example's question; never cut.
        entries: The playbook's entries, in order.
        reflection: What the reflector made of the rollout.
        trial: The response, without its thinking.
        feedback: The environment's words about it.
        solution: A successful response to the same question, without its thinking.
    """

    question: str
    entries: tuple[PlaybookEntry, ...] = ()
    reflection: Reflection | None = None
    trial: str = ""
    feedback: str = ""
    solution: str = ""

    def names(self) -> frozenset[str]:
        """Return the names of the sections that hold something."""
        held = {
            "playbook": bool(self.entries),
            "reflection": self.reflection is not None,
            "trial": bool(self.trial),
            "feedback": bool(self.feedback),
            "solution": bool(self.solution),
        }
        return frozenset(name for name, is_held in held.items() if is_held)

    def without(self, name: SectionName) -> Sections:
        """Return the same without one section."""
        match name:
            case "playbook":
                return replace(self, entries=())
            case "reflection":
                return replace(self, reflection=None)
            case "trial":
                return replace(self, trial="")
            case "feedback":
                return replace(self, feedback="")
            case "solution":
                return replace(self, solution="")

    def only(self, name: SectionName) -> Sections:
        """Return the same with one section alone."""
        kept = self
        for other in SECTION_NAMES:
            kept = kept if other == name else kept.without(other)
        return kept


class PromptTemplates:
    """Renders sections into the last message of a chat, from one Jinja file per kind of prompt.

    Templates run in a sandbox and refuse undefined names. What they insert (responses, feedback, lessons) is data and
    never parsed as a template.

    Args:
        folder: Where to look first; the package's own templates serve what isn't there. `micro` names the terse
            ones that micro-lm speaks.
        operations: What the curator may do; templates read it as `operations`.

    Raises:
        ConfigError: The folder is missing, or a template in it has an error or uses an unknown name.
    """

    def __init__(self, folder: str | None = None, operations: Sequence[OperationName] = ("ADD",)) -> None:
        loaders: list[BaseLoader] = [PackageLoader("resd_lightning.context")]
        if folder == MICRO:
            loaders.insert(0, PackageLoader("resd_lightning.micro"))
        elif folder is not None:
            if not Path(folder).is_dir():
                raise ConfigError(f"model.context.templates: no folder at {folder}")
            loaders.insert(0, FileSystemLoader(folder))
        self._environment = SandboxedEnvironment(
            loader=ChoiceLoader(loaders), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        self._environment.globals["section_names"] = SECTIONS
        self._environment.globals["operations"] = list(operations)
        self._try_all()

    def render(self, name: TemplateName, sections: Sections) -> str:
        """Return the prompt's text."""
        return self._environment.get_template(f"{name}.jinja").render(vars(sections)).strip()

    def messages(self, name: TemplateName, chat: Sequence[Message], sections: Sections) -> tuple[Message, ...]:
        """Return the chat to ask.

        The teacher reads the example's own chat, its last message enriched. Reflector, tagger and curator get one
        message: under a task's system prompt they would answer in the task's format.
        """
        before = chat[:-1] if name == "teacher" else ()
        return (*before, Message(role="user", content=self.render(name, sections)))

    def _try_all(self) -> None:
        entry = PlaybookEntry("e00001", SECTIONS[0], "lesson", helpful=1)
        full = Sections("question", (entry,), Reflection("insight"), "trial", "feedback", "solution")
        for name in TEMPLATES:
            try:
                for sections in (full, Sections("question")):
                    self.render(name, sections)
            except TemplateError as error:
                raise ConfigError(f"model.context.templates: {name}.jinja: {error}") from error
