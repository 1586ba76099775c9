"""An engine that breaks in the middle of a run until somebody mends it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from resume_toy import ReflectiveEngine

from resd_lightning.config import Author, SamplingConfig
from resd_lightning.records import Completion, Purpose
from resd_lightning.rollout.engine import GenerationRequest, Schema


class BreakingEngine(ReflectiveEngine):
    """Raises when it rolls out for the third update while the file `mended` isn't there."""

    def __init__(self, mended: str, batch_size: int = 32) -> None:
        super().__init__(batch_size)
        self._mended = Path(mended)

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: SamplingConfig,
        *,
        author: Author,
        max_prompt_tokens: int,
        schema: Schema | None,
        on_progress: Callable[[int], object],
    ) -> list[Completion]:
        if requests[0].purpose == Purpose.ROLLOUT and requests[0].update == 2 and not self._mended.exists():
            raise RuntimeError("this engine has broken")
        return super().generate(
            requests,
            sampling,
            author=author,
            max_prompt_tokens=max_prompt_tokens,
            schema=schema,
            on_progress=on_progress,
        )
