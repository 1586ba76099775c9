"""How the teacher reads the student's own tokens: against the student, and without each section of its prompt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from resd_lightning.callbacks.probe import Probe, mean
from resd_lightning.config import require
from resd_lightning.diagnostics.sections import NOTHING, WITHOUT
from resd_lightning.diagnostics.tokens import TokenFacts, read_tokens
from resd_lightning.records import Completion, Purpose, UpdateRecord
from resd_lightning.rollout.across_ranks import spread
from resd_lightning.rollout.chat import encode_prompt

if TYPE_CHECKING:
    from resd_lightning.module import ResdModule


class ProbeTokens(Probe):
    """Compares whole distributions, which the training step may never hold, in forward passes of its own.

    Args:
        every: See `Probe`.
        max_examples: See `Probe`.
        max_tokens: Tokens looked at of each response, evenly spaced, the last among them; they bound the memory, which
            is (prompts of a forward pass, `data.micro_batch_size` at most) x this x vocabulary.
    """

    def __init__(self, every: int = 5, max_examples: int = 16, max_tokens: int = 256) -> None:
        super().__init__(every, max_examples)
        require(max_tokens >= 1, "trainer.callbacks: ProbeTokens.max_tokens", "at least 1", max_tokens)
        self.max_tokens = max_tokens

    def look(self, module: ResdModule, record: UpdateRecord, chosen: Sequence[int]) -> None:
        """Read the chosen responses, and put means over them into the record."""

        def read(share: Sequence[tuple[Completion, dict[str, tuple[int, ...]]]]) -> list[TokenFacts]:
            return [
                read_tokens(
                    module.loaded_policy,
                    completion,
                    prompts,
                    max_tokens=self.max_tokens,
                    rows_at_once=module.data.micro_batch_size,
                )
                for completion, prompts in share
            ]

        with module.data.costs.timed(str(Purpose.DIAGNOSE)):
            prompts = [
                {name: encode_prompt(module.tokenizer, chat) for name, chat in self.prompts(module, record, i).items()}
                for i in chosen
            ]
            facts = spread(read, [(record.rollouts[i].completion, p) for i, p in zip(chosen, prompts, strict=True)])
        values: dict[str, list[float]] = defaultdict(list)
        for index, seen in zip(chosen, facts, strict=True):
            for name, value in seen.numbers.items():
                values[f"probe/{name}"].append(value)
            attribution = {_section(name): value for name, value in seen.attribution.items()}
            for name, value in attribution.items():
                values[f"attribution/{name}"].append(value)
            rollout = record.rollouts[index]
            about = {"example": rollout.example.id, "sample": rollout.sample, "reward": rollout.feedback.reward}
            record.observations.append({"kind": "probe", **about, **seen.numbers, "attribution": attribution})
        record.metrics |= {name: mean(of_responses) for name, of_responses in values.items()}


def _section(left_out: str) -> str:
    return "all" if left_out == NOTHING else left_out.removeprefix(WITHOUT)
