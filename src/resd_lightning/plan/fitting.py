"""What fits on a card: the largest values that do, and changes that would help where the run doesn't."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from resd_lightning.config import LoraSettings
from resd_lightning.plan.memory import GIB, peak, phases
from resd_lightning.plan.run import Run
from resd_lightning.plan.seconds import Speed
from resd_lightning.plan.shape import read_shape


@dataclass(frozen=True)
class Card:
    """The memory that a run may take on each device.

    Attributes:
        name: How the user called it.
        gib: Its memory, in GiB.
        reserve_gib: What the plan doesn't count: the driver's context, libraries' workspaces, gaps between blocks.
        speed: How fast it is; None where only its memory was given.
    """

    name: str
    gib: float
    reserve_gib: float
    speed: Speed | None = None

    @property
    def room(self) -> int:
        """Bytes that are left for what the plan counts."""
        return int((self.gib - self.reserve_gib) * GIB)


@dataclass(frozen=True)
class Suggestion:
    """A change and what it would save, found by planning again with it.

    Attributes:
        options: What to set, as on the command line.
        phase: The phase it helps most, among those that don't fit.
        saved: Bytes by which that phase would need less.
        peak: The run's peak with the change, in bytes.
        fits: Whether the run would fit.
    """

    options: str
    phase: str
    saved: int
    peak: int
    fits: bool


def fits(run: Run, card: Card) -> bool:
    """Return whether every phase of the run has room on the card."""
    return peak(run).bytes <= card.room


def largest_values(run: Run, card: Card) -> dict[str, int]:
    """Return, by key, the largest value that fits while all others stay; 0 where none does.

    Micro-batches are bounded by the rollouts of an update, responses by the base's positions, and so is the number of
    responses generated at once.
    """
    found = {
        "data.micro_batch_size": _largest(
            lambda n: fits(replace(run, micro_batch=n), card), run.on_a_rank(run.rollouts)
        ),
        "data.rollout.max_new_tokens": _largest(
            lambda n: fits(replace(run, response=n), card),
            run.shape.max_positions - max(run.prompt, run.teacher_prompt if run.distills else 0),
        ),
    }
    if run.engine_batch is not None:
        most = run.on_a_rank(max(run.rollouts, run.validations))
        found["data.engine.init_args.batch_size"] = _largest(
            lambda n: fits(replace(run, engine_batch=n), card), max(most, run.engine_batch)
        )
    return found


def _largest(holds: Callable[[int], bool], upper: int) -> int:
    """Return the largest number up to `upper` for which a claim holds that holds for all smaller ones; 0 for none."""
    low, high = 0, upper
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def suggestions(run: Run, card: Card) -> list[Suggestion]:
    """Return changes that would help a run that doesn't fit, the most helpful first, and all of them together last."""
    before = {phase.name: phase.bytes for phase in phases(run) if phase.bytes > card.room}
    if not before:
        return []

    def assess(options: str, changed: Run) -> Suggestion:
        saved = {phase.name: before[phase.name] - phase.bytes for phase in phases(changed) if phase.name in before}
        best = max(saved, key=lambda name: saved[name])
        highest = peak(changed).bytes
        return Suggestion(options, best, saved[best], highest, highest <= card.room)

    helpful: list[tuple[Suggestion, Callable[[Run], Run]]] = []
    for options, change in _changes(run):
        found = assess(options, change(run))
        if found.saved > 0:
            helpful.append((found, change))
    helpful.sort(key=lambda pair: -pair[0].saved)
    result = [found for found, _ in helpful]
    if len(helpful) > 1 and not any(found.fits for found in result):
        together = run
        for _, change in helpful:
            together = change(together)
        result.append(assess("all of these", together))
    return result


def _changes(run: Run) -> Iterator[tuple[str, Callable[[Run], Run]]]:
    """Yield what there is to change, as options and as a function, the ones that cost least first."""
    policy = run.policy
    if not policy.gradient_checkpointing:
        yield (
            "--model.policy.gradient_checkpointing true",
            lambda r: replace(r, policy=replace(r.policy, gradient_checkpointing=True)),
        )
    if run.distills and not run.is_fused and (fused := _with_fused_loss(run)).is_fused:
        yield "--model.distillation.loss fused", lambda r: replace(r, distillation=fused.distillation)
    if policy.lora is None:
        yield "--model.policy.lora {}", _with_adapters
    elif not run.is_nf4 and run.shape.experts is None:  # `check_quantization` refuses it for experts
        yield (
            "--model.policy.quantization nf4",
            lambda r: replace(r, policy=replace(r.policy, quantization="nf4")),
        )
    if run.micro_batch > 1:
        yield "--data.micro_batch_size 1", lambda r: replace(r, micro_batch=1)
    if run.engine_batch is not None and run.engine_batch > 1:
        half = run.engine_batch // 2
        yield f"--data.engine.init_args.batch_size {half}", lambda r: replace(r, engine_batch=half)
    if run.distills:
        shorter = max(1, run.teacher_prompt // 2)
        yield f"--model.teacher_prompt.max_tokens {shorter}", lambda r: replace(r, teacher_prompt=shorter)
    if run.context:
        length = max(1, run.context[0].prompt // 2)
        yield (
            f"--model.context.max_prompt_tokens {length}",
            lambda r: replace(r, context=tuple(replace(call, prompt=length) for call in r.context)),
        )
    brief = max(1, run.response // 2)
    yield f"--data.rollout.max_new_tokens {brief}", lambda r: replace(r, response=brief)


def _with_fused_loss(run: Run) -> Run:
    return replace(run, distillation=replace(run.distillation, loss="fused"))


def _with_adapters(run: Run) -> Run:
    policy = replace(run.policy, lora=LoraSettings())
    return replace(run, policy=policy, shape=read_shape(policy))
