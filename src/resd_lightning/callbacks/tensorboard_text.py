"""Shows the playbook and sampled transcripts as text in TensorBoard."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from resd_lightning.context.playbook import Playbook
from resd_lightning.records import Answer, Rollout, TeacherPrompt, UpdateRecord

if TYPE_CHECKING:
    from resd_lightning.module import ResdModule

MAX_SHOWN_CHARS = 6000


class TensorBoardText(Callback):
    """Logs the playbook whenever it changed, and one failed and one successful rollout per batch of prompts.

    Which rollouts are shown follows from their order, so logging draws from no random stream.
    """

    def __init__(self) -> None:
        self._last_fingerprint = ""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what the update made, where there is a TensorBoard logger."""
        module: ResdModule = pl_module  # type: ignore[assignment]
        record = module.data.record
        for sink in trainer.loggers:
            if isinstance(sink, TensorBoardLogger) and record is not None and trainer.is_global_zero:
                self._log(sink, trainer.global_step, module, record)

    def _log(self, sink: TensorBoardLogger, step: int, module: ResdModule, record: UpdateRecord) -> None:
        fingerprint = module.context.fingerprint()
        if fingerprint != self._last_fingerprint:
            self._last_fingerprint = fingerprint
            for key, playbook in module.context.playbooks.items():
                name = f"playbook/{key}" if key else "playbook"
                sink.experiment.add_text(name, playbook_table(playbook), step)
        if record.update % module.data.inner_updates == 0:
            for is_success in (False, True):
                for index, rollout in enumerate(record.rollouts):
                    if rollout.is_success == is_success:
                        name = "transcript/success" if is_success else "transcript/failure"
                        answers = [answer for answer in record.answers if answer.rollout == index]
                        text = transcript_text(rollout, answers, record.teacher_prompts[index])
                        sink.experiment.add_text(name, text, step)
                        break


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
