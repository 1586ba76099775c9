"""An observer that looks closely at a few rollouts every few updates, without a trace in what is trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from resd_lightning.config import require
from resd_lightning.diagnostics.sections import Chat, section_ablations, spaced
from resd_lightning.records import MicroBatch, UpdateRecord
from resd_lightning.rollout.chat import encode_prompt

if TYPE_CHECKING:
    from resd_lightning.module import ResdModule


class Probe(Callback, ABC):
    """Looks before the update's first micro-batch: context and weights are those that its loss will see.

    Which rollouts it looks at follows from their order, and every random state is put back, so that a run with it ends
    bit-identical to one without. All ranks look together.

    Args:
        every: Look at every this many updates, from the first on. A multiple of `data.inner_updates` would always meet
            prompts on their first visit, when the buffer has no solution of them.
        max_examples: Rollouts looked at each time, evenly spaced among those that the loss counts.
    """

    def __init__(self, every: int = 5, max_examples: int = 16) -> None:
        key = f"trainer.callbacks: {type(self).__name__}"
        require(every >= 1, f"{key}.every", "at least 1", every)
        require(max_examples >= 1, f"{key}.max_examples", "at least 1", max_examples)
        self.every = every
        self.max_examples = max_examples

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: MicroBatch, batch_idx: int
    ) -> None:
        """Look, where the update is due and its loss counts any rollout."""
        module: ResdModule = pl_module  # type: ignore[assignment]
        record = module.data.record
        if batch_idx > 0 or record is None or record.update % self.every:
            return
        counted = [
            index
            for index, (rollout, prompt) in enumerate(zip(record.rollouts, record.teacher_prompts, strict=True))
            if prompt.is_enriched and rollout.completion.token_ids
        ]
        if counted:
            with isolate_rng():
                self.look(module, record, spaced(counted, self.max_examples))

    @abstractmethod
    def look(self, module: ResdModule, record: UpdateRecord, chosen: Sequence[int]) -> None:
        """Put what is seen of the chosen rollouts, given by their indices, into the record."""

    @staticmethod
    def prompts(module: ResdModule, record: UpdateRecord, index: int, *, alone: bool = False) -> dict[str, Chat]:
        """Return the teacher's prompts for one rollout; see `section_ablations`."""
        rollout = record.rollouts[index]
        return section_ablations(
            record.teacher_prompts[index],
            rollout.example.messages,
            module.teacher_sections(rollout, record),
            module.templates,
            lambda chat: len(encode_prompt(module.tokenizer, chat)),
            module.teacher_prompt_config.max_tokens,
            alone=alone,
        )


def mean(values: Sequence[float]) -> float:
    """Return the mean of one value or more."""
    return sum(values) / len(values)
