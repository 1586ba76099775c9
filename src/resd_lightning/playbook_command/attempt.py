"""`resd playbook try`: what a playbook in the prompt is worth, prompt by prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.table import Table
from rich.text import Text

from resd_lightning.config import ConfigError
from resd_lightning.context.budget import fit
from resd_lightning.context.playbook import Playbook
from resd_lightning.context.prompts import Sections
from resd_lightning.records import Example, ExampleBatch, Message, Purpose, Rollout
from resd_lightning.rollout.chat import encode_prompt
from resd_lightning.rollout.engine import GenerationRequest

if TYPE_CHECKING:
    from resd_lightning.module import ResdModule


@dataclass(frozen=True)
class Effect:
    """Success without and with a playbook on the same prompts.

    Attributes:
        without: Mean share of solved samples per prompt.
        with_playbook: The same behind the playbook.
        difference: The second minus the first.
        standard_error: Of the difference, over prompts; None for a single prompt.
        prompts: Prompts compared.
        shortened: Prompts behind which not all entries had room.
        skipped: Prompts left out, too long for the question alone.
    """

    without: float
    with_playbook: float
    difference: float
    standard_error: float | None
    prompts: int
    shortened: int
    skipped: int


def paired_effect(pairs: Sequence[tuple[float, float]], *, shortened: int, skipped: int) -> Effect:
    """Return the effect over prompts.

    Args:
        pairs: Each prompt's share of solved samples without and with the playbook; one or more.
        shortened: See `Effect`.
        skipped: See `Effect`.
    """
    gains = [with_playbook - without for without, with_playbook in pairs]
    error = stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else None
    without, with_playbook = (fmean(side) for side in zip(*pairs, strict=True))
    return Effect(without, with_playbook, fmean(gains), error, len(pairs), shortened, skipped)


class TryPlaybook(Callback):
    """Asks each validation prompt again behind a playbook, as the teacher reads one, with the same noise.

    The prompt is the teacher's with no other section, within `model.teacher_prompt.max_tokens`.

    Args:
        playbook: What is tried.
    """

    def __init__(self, playbook: Playbook) -> None:
        self.playbook = playbook
        self._pairs: list[tuple[float, float]] = []
        self._shortened = 0
        self._skipped = 0

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: dict[str, list[Rollout]],  # type: ignore[override]
        batch: ExampleBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Ask and verify behind the playbook, and pair with what validation found."""
        module: ResdModule = pl_module  # type: ignore[assignment]
        data = module.data
        answered: dict[str, list[Rollout]] = {}
        for rollout in outputs["rollouts"]:
            answered.setdefault(rollout.example.id, []).append(rollout)
        self._skipped += len(batch.examples) - len(answered)
        limit = module.teacher_prompt_config.max_tokens
        requests: list[tuple[Example, GenerationRequest]] = []
        for rollouts in answered.values():
            chat = self._chat(module, rollouts[0].example, limit)
            if chat is None:
                self._skipped += 1
                continue
            for rollout in rollouts:
                example = rollout.example
                request = GenerationRequest(Purpose.VALIDATE, module.updates_done, example.id, rollout.sample, chat)
                requests.append((example, request))
        completions = data.generate(
            [request for _, request in requests], data.validation, author="student", max_prompt_tokens=limit
        )
        asked = [(example, completion.text) for (example, _), completion in zip(requests, completions, strict=True)]
        solved: dict[str, list[bool]] = {}
        for (example, _), feedback in zip(asked, data.verify(asked, phase="verify"), strict=True):
            solved.setdefault(example.id, []).append(feedback.is_success)
        self._pairs += [
            (fmean(rollout.is_success for rollout in answered[id_]), fmean(behind)) for id_, behind in solved.items()
        ]

    def _chat(self, module: ResdModule, example: Example, limit: int) -> tuple[Message, ...] | None:
        def render(sections: Sections) -> tuple[Message, ...]:
            return module.templates.messages("teacher", example.messages, sections)

        whole = Sections(example.question, self.playbook.entries)
        fitted = fit(whole, lambda sections: len(encode_prompt(module.tokenizer, render(sections))), limit)
        if fitted is None:
            return None
        self._shortened += len(fitted.entries) < len(whole.entries)
        return render(fitted)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the effect be recorded with the validation's numbers."""
        module: ResdModule = pl_module  # type: ignore[assignment]
        if self._pairs:
            effect = self.effect()
            module.observed |= {
                "try_playbook/without": effect.without,
                "try_playbook/with": effect.with_playbook,
                "try_playbook/difference": effect.difference,
            }
            if effect.standard_error is not None:
                module.observed["try_playbook/standard_error"] = effect.standard_error

    def effect(self) -> Effect:
        """Return what was found.

        Raises:
            ConfigError: No prompt was short enough to be asked.
        """
        if not self._pairs:
            raise ConfigError("every validation prompt is longer than data.max_prompt_tokens: there is nothing to try")
        return paired_effect(self._pairs, shortened=self._shortened, skipped=self._skipped)


def attempt_table(effect: Effect, title: str) -> Table:
    """Return the effect for a terminal."""
    table = Table(title=Text(title), title_justify="left", title_style="bold")
    table.add_column("success on validation prompts")
    table.add_column("", justify="right")
    error = "" if effect.standard_error is None else f" ± {effect.standard_error:.3f} (standard error)"
    table.add_row("without the playbook", f"{effect.without:.3f}")
    table.add_row("with the playbook", f"{effect.with_playbook:.3f}")
    table.add_row("difference", f"{effect.difference:+.3f}{error}")
    table.add_row("prompts", str(effect.prompts))
    table.add_row("prompts without room for all entries", str(effect.shortened))
    table.add_row("prompts too long to ask", str(effect.skipped))
    return table
