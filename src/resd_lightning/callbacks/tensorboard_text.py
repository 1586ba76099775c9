"""Shows what becomes of the playbook, a teacher's prompt and sampled transcripts as text in TensorBoard."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lightning.pytorch import Callback, LightningModule, Trainer

from resd_lightning.callbacks.tensorboard import tensorboards
from resd_lightning.context.difference import Difference, differences
from resd_lightning.context.playbook import Playbook
from resd_lightning.records import Answer, Rollout, TeacherPrompt, UpdateRecord

if TYPE_CHECKING:
    from resd_lightning.module import ResdModule

MAX_SHOWN_CHARS = 6000


class TensorBoardText(Callback):
    """Logs how each update changes the playbook; once per batch of prompts also whole texts.

    Those are, with the batch's first update, one failed and one successful rollout, and with its last, whose end is
    validated, the playbook and one teacher's prompt with its sections marked: the first that is enriched. All follows
    from the rollouts' order, so logging draws from no random stream.
    """

    def __init__(self) -> None:
        self._before: Mapping[str, Playbook] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the playbooks that the run starts, or goes on, with."""
        module: ResdModule = pl_module  # type: ignore[assignment]
        self._before = module.context.playbooks

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what the update made, where there is a TensorBoard logger."""
        module: ResdModule = pl_module  # type: ignore[assignment]
        record = module.data.record
        sinks = tensorboards(trainer)
        if record is None or not sinks:
            return
        texts = self._texts(module, record)
        for sink in sinks:
            for name, text in texts.items():
                sink.experiment.add_text(name, text, trainer.global_step)
        self._before = module.context.playbooks

    def _texts(self, module: ResdModule, record: UpdateRecord) -> dict[str, str]:
        texts: dict[str, str] = {}
        changes = list(differences(self._before, module.context.playbooks))
        if changes:
            texts["playbook/changes"] = changes_table(changes)
        visit, visits = record.update % module.data.inner_updates, module.data.inner_updates
        if visit == 0:
            texts |= _sampled_transcripts(record)
        if visit == visits - 1:
            for key, playbook in module.context.playbooks.items():
                texts[f"playbook/{key}" if key else "playbook"] = playbook_table(playbook)
            for prompt in [prompt for prompt in record.teacher_prompts if prompt.is_enriched][:1]:
                texts["teacher_prompt"] = marked_prompt(prompt)
        return texts


def _sampled_transcripts(record: UpdateRecord) -> dict[str, str]:
    """Return the first failed and the first successful rollout of an update, by name."""
    texts: dict[str, str] = {}
    for index, rollout in enumerate(record.rollouts):
        name = "transcript/success" if rollout.is_success else "transcript/failure"
        if name not in texts:
            answers = [answer for answer in record.answers if answer.rollout == index]
            texts[name] = transcript_text(rollout, answers, record.teacher_prompts[index])
    return texts


def changes_table(changes: Sequence[Difference]) -> str:
    """Return what became of playbook entries as a Markdown table."""
    rows = ["| what | id | lesson | helped | misled | last step |", "|---|---|---|---|---|---|"]
    for one in changes:
        lessons = "<br>-> ".join(_cell(lesson) for lesson in one.lessons)
        rows.append(f"| {one.kind} | {_cell(one.id)} | {lessons} | {' | '.join(one.numbers)} |")
    return "\n".join(rows)


def marked_prompt(prompt: TeacherPrompt) -> str:
    """Return a teacher's prompt as Markdown, each section under its name and what the template says under none."""
    text = prompt.messages[-1]["content"]
    parts: list[tuple[str, str]] = []
    end = 0
    for name, start, stop in prompt.spans:
        parts += [("", text[end:start]), (name, text[start:stop])]
        end = stop
    parts.append(("", text[end:]))
    shown = [(name, part) for name, part in parts if part.strip()]
    return "\n\n".join((f"**{name}**\n\n" if name else "") + _quoted(part) for name, part in shown)


def playbook_table(playbook: Playbook) -> str:
    """Return a playbook as a Markdown table."""
    rows = [f"{len(playbook)} entries after {playbook.step} context updates", ""]
    rows += ["| id | section | helped | misled | last step | lesson |", "|---|---|---|---|---|---|"]
    rows += [
        f"| {e.id} | {e.section} | {e.helpful} | {e.harmful} | {e.last_step} | {_cell(e.text)} |"
        for e in playbook.entries
    ]
    return "\n".join(rows)


def transcript_text(rollout: Rollout, answers: list[Answer], prompt: TeacherPrompt) -> str:
    """Return one rollout and what was made of it as Markdown, every text from a model quoted verbatim."""
    parts = [
        ("prompt", rollout.example.question),
        (f"response, reward {rollout.feedback.reward:g}", rollout.completion.text),
        ("feedback", rollout.feedback.text),
    ]
    for answer in answers:
        problems = ", ".join(problem.kind for problem in answer.problems) or "well-formed"
        parts.append((f"{answer.purpose} ({problems})", answer.text))
    sections = ", ".join(sorted(prompt.sections)) or "plain, masked out of the loss"
    parts.append((f"teacher prompt ({sections})", prompt.messages[-1]["content"] if prompt.is_enriched else ""))
    return "\n\n".join(f"**{title}**\n\n{_quoted(text)}" for title, text in parts if text)


def _quoted(text: str) -> str:
    shown = text[:MAX_SHOWN_CHARS].encode("utf-8", "replace").decode("utf-8")  # TensorBoard refuses lone surrogates
    return f"<pre>{html.escape(shown)}</pre>"


def _cell(text: str) -> str:
    return html.escape(text).replace("|", "&#124;").replace("\n", "<br>")
