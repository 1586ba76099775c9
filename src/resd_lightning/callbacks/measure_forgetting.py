"""Answers past prompts again as training goes on, and says which of those once solved are solved no longer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from resd_lightning.callbacks.tensorboard import tensorboards
from resd_lightning.config import require
from resd_lightning.records import Example, Purpose
from resd_lightning.run_folder import RunFolder, append_lines, drop_lines_after
from resd_lightning.stream import PromptStream

if TYPE_CHECKING:
    from resd_lightning.module import ResdModule

Shares = Sequence[float | None]


@dataclass(frozen=True)
class Scoring:
    """What one scoring found, as `forgetting.jsonl` keeps it.

    Attributes:
        updates_done: Policy updates before it.
        scored: Number of examples that it asked about.
        solved_share: Share of them that are solved; None where nothing was scored.
        kept_share: Of those that an earlier scoring solved, the share still solved; None where there were none.
        solved_share_by_batch: The share solved of each prompt batch, in the order seen: a column of the matrix.
        forgotten: Examples that an earlier scoring solved and this one doesn't, with the updates done at the latest.
        learned: Examples that this scoring is the first to solve.
    """

    updates_done: int
    scored: int
    solved_share: float | None
    kept_share: float | None
    solved_share_by_batch: Shares
    forgotten: dict[str, int]
    learned: list[str]

    def metrics(self) -> dict[str, float]:
        """Return its scalars by name; a share of nothing is left out."""
        shares = {"solved_share": self.solved_share, "kept_share": self.kept_share}
        counts = {"scored": self.scored, "forgotten": len(self.forgotten), "learned": len(self.learned)}
        return {f"forgetting/{name}": float(x) for name, x in {**shares, **counts}.items() if x is not None}


def compare(updates_done: int, solved: Sequence[Mapping[str, bool]], solved_at: Mapping[str, int]) -> Scoring:
    """Return what a scoring tells beside the earlier ones.

    Args:
        updates_done: Policy updates before it.
        solved: For each prompt batch, in the order seen, whether each of its scored examples is solved now.
        solved_at: The updates done at the latest earlier scoring that solved an example; absent if none did.
    """
    now = {id_: is_solved for batch in solved for id_, is_solved in batch.items()}
    once_solved = [id_ for id_ in now if id_ in solved_at]
    forgotten = {id_: solved_at[id_] for id_ in once_solved if not now[id_]}
    return Scoring(
        updates_done,
        len(now),
        sum(now.values()) / len(now) if now else None,
        1 - len(forgotten) / len(once_solved) if once_solved else None,
        [sum(batch.values()) / len(batch) if batch else None for batch in solved],
        forgotten,
        [id_ for id_ in now if now[id_] and id_ not in solved_at],
    )


class MeasureForgetting(Callback):
    """Answers examples of the prompt batches seen so far, once and greedily, and compares with what it found earlier.

    An example is forgotten when an earlier scoring solved it and this one does not, and newly learned when this one is
    the first to solve it. The callback only observes: greedy answers draw no noise, and a run with it comes to the same
    weights as one without. It stands in `trainer.callbacks`, and writes `forgetting.jsonl` in the run's folder.

    Args:
        every_updates: Updates between two scorings; null scores after each prompt batch's last update.
        max_examples: Most examples in a scoring; the same ones each time, spread evenly over the run's prompts.
    """

    def __init__(self, every_updates: int | None = None, max_examples: int = 128) -> None:
        require(
            every_updates is None or every_updates >= 1, "MeasureForgetting.every_updates", "at least 1", every_updates
        )
        require(max_examples >= 1, "MeasureForgetting.max_examples", "at least 1", max_examples)
        self.every_updates = every_updates
        self.max_examples = max_examples
        self.solved_at: dict[str, int] = {}
        self.columns: list[tuple[int, Shares]] = []

    def state_dict(self) -> dict[str, object]:
        """Return what was solved when: of each example the latest time, of each batch the share at each scoring."""
        return {"solved_at": dict(self.solved_at), "columns": list(self.columns)}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Restore what `state_dict` returned."""
        self.solved_at = dict(cast("dict[str, int]", state_dict["solved_at"]))
        self.columns = list(cast("list[tuple[int, Shares]]", state_dict["columns"]))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop the lines past the update that is resumed from."""
        if trainer.is_global_zero:
            drop_lines_after(_folder(trainer).forgetting, trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score where it is due; the scalars go the way of the update's others."""
        module: ResdModule = pl_module  # type: ignore[assignment]
        data, updates_done = module.data, trainer.global_step
        if data.record is None or updates_done % (self.every_updates or data.inner_updates):
            return
        panel = panel_of_past(data.stream, data.record.update, self.max_examples)
        rollouts = data.roll_out([example for batch in panel for example in batch], updates_done, Purpose.RESCORE)
        is_solved = {rollout.example.id: rollout.is_success for rollout in rollouts}  # prompts too long are missing
        solved = [{e.id: is_solved[e.id] for e in batch if e.id in is_solved} for batch in panel]
        scoring = compare(updates_done, solved, self.solved_at)
        self.solved_at |= {id_: updates_done for batch in solved for id_ in batch if batch[id_]}
        self.columns.append((updates_done, scoring.solved_share_by_batch))
        data.record.metrics |= scoring.metrics()
        if trainer.is_global_zero:
            folder = _folder(trainer)
            folder.path.mkdir(parents=True, exist_ok=True)
            append_lines(folder.forgetting, [asdict(scoring)])
            # Imported here: matplotlib takes half a second, which only observers that draw cost.
            from resd_lightning.diagnostics.pictures import forgetting_picture

            for sink in tensorboards(trainer):
                sink.experiment.add_figure("forgetting/solved", forgetting_picture(self.columns), updates_done)


def panel_of_past(stream: PromptStream, update: int, max_examples: int) -> list[list[Example]]:
    """Return the examples that stand for each prompt batch up to that of `update`, in the order seen.

    They are picked evenly from all prompts of the run, by place, so that an example is scored at every scoring after
    its batch was met, or at none.
    """
    total = stream.num_batches * stream.batch_size
    picked = [place * total // max_examples for place in range(max_examples)] if max_examples < total else range(total)
    panel: list[list[Example]] = [[] for _ in range(update // stream.inner_updates + 1)]
    for place in picked:
        if place // stream.batch_size < len(panel):
            panel[place // stream.batch_size].append(stream.examples[place])
    return panel


def _folder(trainer: Trainer) -> RunFolder:
    return RunFolder(Path(trainer.default_root_dir))
