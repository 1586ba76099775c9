"""A plan as tables for the terminal, and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

from resd_lightning.plan.fitting import Card, Suggestion
from resd_lightning.plan.memory import GIB, Phase
from resd_lightning.plan.prompts import PromptLengths
from resd_lightning.plan.work import Ratio, Work


@dataclass(frozen=True)
class Plan:
    """What `resd plan` found.

    Attributes:
        base: The base's name.
        base_weights: All its weights.
        trained_weights: How many weights are trained.
        loss: Which loss updates take.
        card: What there is.
        phases: What holds memory in each phase.
        largest: The largest values that fit, by key; 0 where none does.
        suggestions: Changes that would help, where the run doesn't fit.
        work: The phases of an update, over all ranks, and the least seconds each takes where that is known.
        ranks: Devices that share the prompts.
        against_sdpo: What the context's phases make of an update; None where there are none.
        prompts: Lengths of training prompts; None where they aren't at hand.
        prompt_limit: Longest prompt, in tokens.
        notes: What the plan leaves out, and why.
    """

    base: str
    base_weights: int
    trained_weights: int
    loss: str
    card: Card
    phases: list[Phase]
    largest: dict[str, int]
    suggestions: list[Suggestion]
    work: list[tuple[Work, float | None]]
    ranks: int
    against_sdpo: Ratio | None
    prompts: PromptLengths | None
    prompt_limit: int
    notes: list[str]

    @property
    def peak(self) -> Phase:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: phase.bytes)

    @property
    def fits(self) -> bool:
        """Whether every phase has room on the card."""
        return self.peak.bytes <= self.card.room

    def as_json(self) -> dict[str, object]:
        """Return everything, with amounts of memory in bytes."""
        phases = [{**asdict(phase), "bytes": phase.bytes} for phase in self.phases]
        work = [{**asdict(phase), "least_s": seconds} for phase, seconds in self.work]
        found = {"phases": phases, "work": work, "peak": self.peak.name, "fits": self.fits, "room": self.card.room}
        return asdict(self) | found


def show_plan(plan: Plan, console: Console) -> None:
    """Print the plan."""
    size = f"{plan.base_weights / 1e9:.3g} B weights, {plan.trained_weights / 1e6:.3g} M trained"
    console.print(f"{plan.base}: {size}; loss {plan.loss}", highlight=False)
    console.print(memory_table(plan))
    card, room = plan.card, plan.card.room / GIB
    name = card.name if plan.ranks == 1 else f"{card.name}, each of {plan.ranks}"
    console.print(
        f"{name}: {card.gib:g} GiB, less {card.reserve_gib:g} GiB for the driver's context, workspaces and gaps: "
        f"{room:.2f} GiB. {'It fits' if plan.fits else 'It does not fit'}: the peak is {_gib(plan.peak.bytes)} GiB, in "
        f"the phase {plan.peak.name}.",
        highlight=False,
    )
    if plan.suggestions:
        console.print(suggestion_table(plan))
    console.print(largest_table(plan))
    console.print(work_table(plan))
    if plan.against_sdpo is not None:
        ratio = plan.against_sdpo
        console.print(
            "RESD update / SDPO update (no reflection, tags, curation; as long a teacher prompt): "
            f"{ratio.written:.2f} by tokens written, {ratio.flops:.2f} by operations.",
            highlight=False,
        )
    if plan.prompts is not None:
        found = plan.prompts
        console.print(
            f"Of the first {found.count} training prompts {found.too_long / found.count:.1%} are longer than "
            f"data.max_prompt_tokens {plan.prompt_limit} and would be skipped; mean {found.mean:.0f}, longest "
            f"{found.longest}.",
            highlight=False,
        )
    for note in plan.notes:
        console.print(f"Note: {note}", highlight=False, markup=False)


def memory_table(plan: Plan) -> Table:
    """Return what holds memory, first what is there in every phase, then what each phase adds."""
    table = Table(title="Memory at the height of each phase")
    for name in ("phase", "what", "GiB", "sum"):
        table.add_column(name, justify="left" if name in ("phase", "what") else "right")
    always = [item for item in plan.phases[0].items if all(item in phase.items for phase in plan.phases)]
    for number, item in enumerate(always):
        total = _gib(sum(each.bytes for each in always)) if number == len(always) - 1 else ""
        table.add_row("in every phase" if number == 0 else "", item.name, _gib(item.bytes), total)
    for phase in plan.phases:
        table.add_section()
        own = [item for item in phase.items if item not in always]
        for number, item in enumerate(own):
            total = _gib(phase.bytes) if number == len(own) - 1 else ""
            table.add_row(phase.name if number == 0 else "", item.name, _gib(item.bytes), total)
        if not own:
            table.add_row(phase.name, "", "", _gib(phase.bytes))
    return table


def suggestion_table(plan: Plan) -> Table:
    """Return what would help."""
    table = Table(title="What would help, each planned again by itself")
    for name in ("change", "phase it helps most", "saves there, GiB", "peak then, GiB", "fits then"):
        is_text = name in ("change", "phase it helps most")
        table.add_column(name, justify="left" if is_text else "right", no_wrap=name == "change")
    for each in plan.suggestions:
        table.add_row(each.options, each.phase, _gib(each.saved), _gib(each.peak), "yes" if each.fits else "no")
    return table


def largest_table(plan: Plan) -> Table:
    """Return the largest values that fit."""
    table = Table(title="Largest value that fits, all others as they are")
    table.add_column("key")
    table.add_column("value", justify="right")
    for key, value in plan.largest.items():
        table.add_row(key, str(value) if value else "none")
    return table


def work_table(plan: Plan) -> Table:
    """Return tokens, operations and the least time of an update."""
    devices = f" on {plan.ranks} devices" if plan.ranks > 1 else ""
    table = Table(title=f"One update{devices} at these limits, if every rollout fails")
    timed = [seconds for _, seconds in plan.work if seconds is not None]
    columns = ("phase", "sequences", "tokens read", "tokens written", "TFLOP", *(["s, at least"] if timed else []))
    for name in columns:
        table.add_column(name, justify="left" if name == "phase" else "right")
    for each, seconds in plan.work:
        numbers = [f"{each.sequences:,}", f"{each.read:,}", f"{each.written:,}", _number(each.flops / 1e12)]
        if timed:
            numbers.append("elsewhere" if seconds is None else _number(seconds))
        table.add_row(each.name, *numbers)
    if timed:
        table.add_section()
        table.add_row("all" if len(timed) == len(plan.work) else "all here", "", "", "", "", _number(sum(timed)))
    return table


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _gib(amount: int) -> str:
    return f"{amount / GIB:.2f}"
