"""A comparison as Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from resd_lightning.compare.aggregate import Reached, VariantNumbers
from resd_lightning.compare.interval import Estimate
from resd_lightning.compare.plan import Options, PlannedRun
from resd_lightning.compare.study import SCORES, Score, Study
from resd_lightning.config import differing, flat
from resd_lightning.costs import UNITS

NONE = "-"


def report(
    title: str,
    study: Study,
    samples: int,
    numbers: Mapping[str, VariantNumbers],
    runs: Sequence[PlannedRun],
    missing: Mapping[PlannedRun, str],
) -> str:
    """Return the whole table.

    Args:
        title: The study's name.
        study: What was compared.
        samples: Responses per prompt in validation.
        numbers: Estimates by variant; a variant without a finished run is missing.
        runs: All runs of the study.
        missing: The runs that no number comes from, and why.
    """
    unit = study.currency.replace("_", " ")
    finished = [run for run in runs if run not in missing]
    seeds = {name: sum(run.variant == name for run in finished) for name in study.variants}
    parts = [
        f"# {title}",
        f"Budget of a run: {study.limit:,} {unit}. Means over seeds, ± half the width of the 95 % interval (Student's "
        "t). `docs/comparing.md` says how each number is made.",
    ]

    def scores(heading: str, chosen: Mapping[str, Mapping[Score, Estimate]]) -> None:
        rows = [
            [label, str(seeds[name]), *(_score(chosen[name][s]) if name in chosen else NONE for s in SCORES)]
            for name, label in study.labels.items()
        ]
        parts.append(f"## {heading}")
        parts.append(_markdown(["variant", "seeds", *(f"{score}@{samples}" for score in SCORES)], rows))

    scores("At the end", {name: each.end for name, each in numbers.items()})
    scores("At the rank-based checkpoint", {name: each.ranked for name, each in numbers.items()})
    scores(f"Area under the curve over {unit}", {name: each.area for name, each in numbers.items()})
    for level in study.levels:
        rows = [
            [label, *(_spent(numbers[name].reached[level]) if name in numbers else [NONE] * len(UNITS))]
            for name, label in study.labels.items()
        ]
        parts.append(f"## Until {study.metric}@{samples} first reaches {level:g}")
        parts.append(_markdown(["variant", *_unit_names()], rows))
    parts.append("## Spent in all")
    rows = [
        [label, *(_total(numbers[name]) if name in numbers else [NONE] * (len(UNITS) + 2))]
        for name, label in study.labels.items()
    ]
    parts.append(_markdown(["variant", "updates", *_unit_names(), "budget spent at the end"], rows))
    differing = _differing(study, runs)
    if differing:
        parts += ["## What the variants differ in", _markdown(["key", *study.labels.values()], differing)]
    if missing:
        rows = [[study.labels[run.variant], str(run.seed), reason] for run, reason in missing.items()]
        parts += ["## Runs without numbers", _markdown(["variant", "seed", "why"], rows)]
    return "\n\n".join(parts) + "\n"


def _unit_names() -> list[str]:
    return [unit.replace("_", " ") for unit in UNITS]


def _score(value: Estimate) -> str:
    return _with_width(value, ".3f")


def _with_width(value: Estimate, form: str) -> str:
    width = "" if value.half_width is None else f" ± {value.half_width:{form}}"
    return f"{value.mean:{form}}{width}"


def _spent(reached: Reached) -> list[str]:
    if reached.spent is None:
        return [f"{reached.num_reached} of {reached.num_runs} runs", *[NONE] * (len(UNITS) - 1)]
    return [_with_width(value, ",.1f" if unit == "seconds" else ",.0f") for unit, value in reached.spent.items()]


def _total(numbers: VariantNumbers) -> list[str]:
    spent = [_with_width(value, ",.1f" if unit == "seconds" else ",.0f") for unit, value in numbers.total.items()]
    shares = dict.fromkeys(f"{share:.1%}" for share in numbers.share_at_end)  # once where they are alike
    return [_with_width(numbers.updates, ",.0f"), *spent, " to ".join(shares)]


def _differing(study: Study, runs: Sequence[PlannedRun]) -> list[list[str]]:
    """Return a row for each key that has different values in the runs of the first seed."""
    options = [flat(run.options) for run in runs if run.seed == study.seeds[0]]
    texts = [{key: _value(value) for key, value in each.items() if key != "run_dir"} for each in options]
    return [[key, *(NONE if value is None else value for value in values)] for key, values in differing(texts).items()]


def _value(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(_value(each) for each in value) or "none"
    if isinstance(value, Mapping) and "class_path" in value:
        return _class(value)
    return str(value)


def _class(value: Options) -> str:
    name, arguments = str(value["class_path"]).rpartition(".")[2], value.get("init_args") or {}
    return f"{name} {arguments}" if arguments else name


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(header), line(["---"] * len(header)), *map(line, rows)])
