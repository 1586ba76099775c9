"""The memory of each phase of an update; a run's peak is the largest of them, not their sum."""

from __future__ import annotations

from dataclasses import dataclass

from resd_lightning.plan.activations import backward, kept_by_last_norm, kept_by_stack, without_gradient
from resd_lightning.plan.generation import generation
from resd_lightning.plan.losses import from_teacher, loss, teacher_output
from resd_lightning.plan.run import Call, Run
from resd_lightning.plan.weights import Item, gathered, gathered_gradients, optimizer_step, resident

GIB = 2**30


@dataclass(frozen=True)
class Phase:
    """What holds memory in one phase of an update.

    Attributes:
        name: The phase.
        items: What holds memory at its height.
    """

    name: str
    items: tuple[Item, ...]

    @property
    def bytes(self) -> int:
        """The phase's peak."""
        return sum(item.bytes for item in self.items)


def phases(run: Run) -> list[Phase]:
    """Return the phases of an update, and a validation, in their order."""
    always, working = resident(run), gathered(run, 2)
    generating = always if run.engine_batch is None else always + gathered(run, run.shape.layers)
    found = [Phase("rollout", generating + generation(run, run.rollout))]
    calls = (
        [Phase(", ".join(call.name for call in run.context), generating + _largest_call(run))] if run.context else []
    )
    if run.distills:
        found += [*calls, Phase("teacher forward", always + working + teacher(run))]
    found.append(Phase("student forward and backward", always + working + gathered_gradients(run) + student(run)))
    found.append(Phase("optimizer step", (*always, Item("square roots of the second moments", optimizer_step(run)))))
    if run.engine_batch is not None:
        call = Call("validation", run.prompt, run.validation, run.validations)
        found.append(Phase("validation", generating + generation(run, call)))
    return found


def peak(run: Run) -> Phase:
    """Return the phase that needs most."""
    return max(phases(run), key=lambda phase: phase.bytes)


def teacher(run: Run) -> tuple[Item, ...]:
    """Return what the teacher's forward pass holds beside the weights: one layer's work, or what it ends with."""
    work = without_gradient(run, run.micro_batch, run.teacher_prompt + run.response)
    return (Item("activations or result", max(work, teacher_output(run))),)


def student(run: Run) -> tuple[Item, ...]:
    """Return what the student's pass holds at its height: at the loss, or where the backward pass begins."""
    candidates = []
    for objective in run.objectives:
        for each in ("distillation", "grpo") if objective == "mixture" else (objective,):
            shown = from_teacher(run) if each == "distillation" else 0
            kept = kept_by_stack(run, run.micro_batch, run.prompt + run.response)
            stack = Item("activations kept", kept)
            norm = Item("last norm", kept_by_last_norm(run, run.micro_batch, run.prompt + run.response))
            at_loss = (stack, norm, Item("teacher's hidden states or logits", shown), Item("loss", loss(run, each)))
            gradient = backward(run, run.micro_batch, run.prompt + run.response)
            candidates += [at_loss, (stack, Item("backward pass of a layer", gradient))]
    best = max(candidates, key=lambda items: sum(item.bytes for item in items))
    return tuple(item for item in best if item.bytes > 0)


def _largest_call(run: Run) -> tuple[Item, ...]:
    return max((generation(run, call) for call in run.context), key=lambda items: sum(item.bytes for item in items))
