"""Which prompts an update sees: one pass over the data, each batch held for K updates (paper, "Streaming")."""

from __future__ import annotations

from collections.abc import Sequence

from resd_lightning.config import ConfigError
from resd_lightning.records import Example


class PromptStream:
    """Deals the examples in order, `batch_size` at a time, each batch to `inner_updates` consecutive updates.

    A pure function of the update's number, so resuming needs nothing but that number. The last incomplete batch is
    dropped, and nothing is shuffled, as in the paper.

    Args:
        examples: The training split, in order.
        batch_size: Prompts per batch.
        inner_updates: Updates on one batch; K in the paper.
        max_batches: Stop after this many batches; None for all.

    Raises:
        ConfigError: The examples don't fill one batch, or two share an id.
    """

    def __init__(
        self, examples: Sequence[Example], *, batch_size: int, inner_updates: int, max_batches: int | None = None
    ) -> None:
        if not examples:
            raise ConfigError("data.task yields no training examples")
        if len(examples) < batch_size:
            raise ConfigError(
                f"data.batch_size is {batch_size}, but data.task yields {len(examples)} training examples: "
                "not one full batch"
            )
        require_unique_ids(examples, "training")
        self.examples = tuple(examples)
        self.batch_size = batch_size
        self.inner_updates = inner_updates
        full = len(examples) // batch_size
        self.num_batches = full if max_batches is None else min(full, max_batches)

    @property
    def num_updates(self) -> int:
        """Updates in the whole run."""
        return self.num_batches * self.inner_updates

    def batch(self, update: int) -> tuple[Example, ...]:
        """Return the prompts of update number `update`, counted from 0."""
        if not 0 <= update < self.num_updates:
            raise IndexError(f"update {update} is outside the stream's {self.num_updates}")
        start = update // self.inner_updates * self.batch_size
        return self.examples[start : start + self.batch_size]

    def is_new_batch(self, update: int) -> bool:
        """Whether this update is the first on its batch."""
        return update % self.inner_updates == 0


def require_unique_ids(examples: Sequence[Example], what: str) -> None:
    """Raise `ConfigError` if two examples share an id, which would give them one seed and one score.

    Args:
        examples: A split.
        what: The split's name, for the message.
    """
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise ConfigError(f"data.task yields two {what} examples with the id {example.id!r}")
        seen.add(example.id)
