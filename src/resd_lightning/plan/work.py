"""How many tokens an update reads and writes, and roughly how many floating-point operations that is.

A matrix takes two operations for each weight and token forward, and as many for each of its two gradients (Kaplan et
al. 2020, "Scaling Laws for Neural Language Models", section 2.1); one of those falls away where the matrix is frozen.
Attention takes four for each number of the queries and each token before theirs. Operations compare phases that read
many tokens at once. Generation writes one at a time and waits for memory: what compares there is the tokens written.
"""

from __future__ import annotations

from dataclasses import dataclass

from resd_lightning.plan.run import Call, Run


@dataclass(frozen=True)
class Work:
    """What one phase of an update comes to.

    Attributes:
        name: The phase.
        sequences: How many it has.
        read: Tokens it reads at once.
        written: Tokens it generates, one after the other.
        flops: Floating-point operations.
    """

    name: str
    sequences: int
    read: int
    written: int
    flops: float


@dataclass(frozen=True)
class Ratio:
    """An update against the same one without reflection, tags and curation: SDPO's, with as long a teacher prompt.

    Attributes:
        written: By tokens generated.
        flops: By floating-point operations.
    """

    written: float
    flops: float


def work(run: Run) -> list[Work]:
    """Return the phases of an update in which every rollout fails and every text has its full length."""
    found = [_generating(run, run.rollout)]
    if run.distills:
        found += [_generating(run, call) for call in run.context]
        time = run.teacher_prompt + run.response
        flops = run.rollouts * (_forward(run, time) + run.response * _head(run))
        found.append(Work("teacher forward", run.rollouts, run.rollouts * time, 0, flops))
    time = run.prompt + run.response
    passes = 2 if "mixture" in run.objectives else 1  # its two losses take turns
    flops = passes * run.rollouts * (_student(run, time) + 2 * run.response * _head(run))
    found.append(Work("student forward and backward", run.rollouts, passes * run.rollouts * time, 0, flops))
    return found


def against_sdpo(run: Run) -> Ratio | None:
    """Return what reflection, tags and curation make of an update; None where it has none of them."""
    if not run.context or not run.distills:
        return None
    phases, names = work(run), {call.name for call in run.context}
    without = [phase for phase in phases if phase.name not in names]
    return Ratio(
        sum(phase.written for phase in phases) / sum(phase.written for phase in without),
        sum(phase.flops for phase in phases) / sum(phase.flops for phase in without),
    )


def _generating(run: Run, call: Call) -> Work:
    flops = call.sequences * (_forward(run, call.prompt + call.response) + call.response * _head(run))
    return Work(call.name, call.sequences, call.sequences * call.prompt, call.sequences * call.response, flops)


def prompt_flops(run: Run, call: Call) -> float:
    """Return the operations of reading one prompt, before the first token is written."""
    return _forward(run, call.prompt) + _head(run)


def _forward(run: Run, time: int) -> float:
    """Return the operations of a forward pass over one sequence, the output head left out."""
    shape = run.shape
    adapters = sum(one.adapter_weights for one in shape.linears)
    pairs = time * (time + 1) / 2
    return shape.layers * (2.0 * time * (shape.weights_met + adapters) + 4.0 * shape.query * pairs)


def _student(run: Run, time: int) -> float:
    """Return the operations of forward and backward passes over one sequence, the output head left out."""
    forward = _forward(run, time)
    is_frozen = run.policy.lora is not None
    matrices = 2.0 * time * run.shape.layers * run.shape.weights_met
    backward = 2 * forward - (matrices if is_frozen else 0)
    return forward + backward + (forward if run.policy.gradient_checkpointing else 0)


def _head(run: Run) -> float:
    return 2.0 * run.shape.vocab * run.shape.hidden
