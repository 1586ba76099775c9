"""CACHE: remember a success of each prompt (RESD Alg. 1 line 11)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch import Trainer

from resd_lightning.algorithm import AlgorithmCallback
from resd_lightning.records import UpdateRecord

if TYPE_CHECKING:
    from resd_lightning.module import ResdModule


class CacheSolutions(AlgorithmCallback):
    """Puts every success into the solution buffer B(x), the latest of a prompt winning."""

    line = 11

    def on_rollouts_end(self, trainer: Trainer, module: ResdModule, record: UpdateRecord) -> None:
        """Remember this update's successes."""
        for rollout in record.rollouts:
            if rollout.is_success:
                module.context.put_solution(rollout.example.id, rollout.completion.text)
                record.count("solutions/cached")
