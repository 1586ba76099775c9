"""CONCISE: prune the playbooks before the update reads them (RESD Alg. 1 line 6; App. D)."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from lightning.pytorch import Trainer

from resd_lightning.algorithm import AlgorithmCallback
from resd_lightning.context.concise import concise, prune_reason
from resd_lightning.records import UpdateRecord

if TYPE_CHECKING:
    from resd_lightning.module import ResdModule


class ConcisePlaybook(AlgorithmCallback):
    """Prunes each playbook of the update: every F context updates, and down to its budget whenever it exceeds it.

    It runs at the start of the update, and once more after curation where that went over the budget. Draws come from a
    generator of its own, seeded by run, update and playbook.
    """

    line = 6

    def on_rollouts_end(self, trainer: Trainer, module: ResdModule, record: UpdateRecord) -> None:
        """Prune what is due."""
        self._prune(module, record, concise_every=module.context_config.concise_every)

    def on_curation_end(self, trainer: Trainer, module: ResdModule, record: UpdateRecord) -> None:
        """Prune only what curation has filled beyond its budget."""
        self._prune(module, record, concise_every=None)

    @staticmethod
    def _prune(module: ResdModule, record: UpdateRecord, *, concise_every: int | None) -> None:
        config, context = module.context_config, module.context
        for key in record.playbook_keys(context.key):
            playbook = context.playbooks[key]
            reason = prune_reason(
                # Without a period no step is due, so that only the budget speaks.
                playbook.step if concise_every is not None else 0,
                every=concise_every or 1,
                size=len(playbook),
                max_entries=config.max_entries,
            )
            if reason is None:
                continue
            kept = concise(
                playbook.entries,
                method=config.concise,
                max_entries=config.max_entries if reason == "over_budget" else None,
                step=playbook.step,
                rng=random.Random(f"{module.data.seed}|concise|{record.update}|{key}|{concise_every}"),
            )
            record.count("playbook/pruned", len(playbook) - len(kept))
            gone = {entry.id for entry in playbook.entries} - {entry.id for entry in kept}
            record.log_operations(
                {"type": "PRUNE", "reason": reason, "id": id_, "playbook": key} for id_ in sorted(gone)
            )
            context.put_playbook(key, playbook.replace_entries(kept))
