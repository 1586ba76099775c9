"""`resd compare` from the study's file to the folder of results."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import cast

from rich.console import Console

from resd_lightning.compare.aggregate import aggregate
from resd_lightning.compare.curve import NoNumbersError, Point, RunNumbers, measure, read_curve
from resd_lightning.compare.figures import draw
from resd_lightning.compare.launch import Launcher, choose_jobs, locked
from resd_lightning.compare.plan import Compose, Options, PlannedRun, plan
from resd_lightning.compare.study import Study, read_study
from resd_lightning.compare.table import report
from resd_lightning.config import ConfigError
from resd_lightning.run_folder import replace_text

logger = logging.getLogger(__name__)


def compare_study(
    study_file: Path,
    out: Path,
    compose: Compose,
    *,
    jobs: int | None,
    seeds: Sequence[int] | None,
    variants: Sequence[str] | None,
) -> int:
    """Run what is unfinished of a study, write its results, and return 1 if a run failed, else 0.

    Args:
        study_file: The study.
        out: Folder of runs and results.
        compose: Builds and checks the arguments of a run.
        jobs: Runs at a time; None chooses.
        seeds: Run these of the study's seeds only.
        variants: Run these of the study's variants only.

    Raises:
        ConfigError: Anything that can be known to be wrong before the first run.
    """
    study = read_study(study_file)
    wanted = {
        (name, seed)
        for name in _chosen("variants", variants, list(study.variants))
        for seed in _chosen("seeds", seeds, study.seeds)
    }
    with locked(out) as lock:
        logger.info("checking %d runs", len(study.variants) * len(study.seeds))
        runs = plan(study, out, compose)
        for run in runs:
            run.check_unchanged()
        todo = [run for run in runs if run.state != "finished" and (run.variant, run.seed) in wanted]
        launcher = Launcher(choose_jobs(jobs, runs), lock)
        write_commands(out, runs, launcher.environment)
        logger.info("%d of %d runs to make, %d at a time", len(todo), len(runs), launcher.jobs)
        failed = launcher.run_all(todo)
        write_results(study_file.stem, study, out, runs, failed)
    for run, status in failed.items():
        logger.error("failed: %s, seed %d, exit status %d, see %s", run.variant, run.seed, status, run.log)
    return 1 if failed else 0


def _chosen(key: str, asked: Sequence[object] | None, known: Sequence[object]) -> Sequence[object]:
    unknown = [each for each in asked or () if each not in known]
    if unknown:
        raise ConfigError(f"--{key}: the study has no {unknown}, only {list(known)}")
    return known if asked is None else asked


def write_commands(out: Path, runs: Sequence[PlannedRun], environment: Mapping[str, str]) -> None:
    """Write the command of each run, for a shell in the folder that this one was called in."""
    lines = [*(f"export {name}={value}" for name, value in environment.items()), *(run.command for run in runs)]
    replace_text(out / "commands.sh", "".join(f"{line}\n" for line in lines))


def write_results(
    title: str, study: Study, out: Path, runs: Sequence[PlannedRun], failed: Mapping[PlannedRun, int]
) -> None:
    """Write table, figures and `results.json` from the runs that are finished."""
    samples = cast("int", cast("Options", runs[0].options["data"])["validation_samples"])
    numbers: dict[str, dict[int, RunNumbers]] = {}
    missing: dict[PlannedRun, str] = {}
    for run in runs:
        if run in failed:
            missing[run] = f"failed with exit status {failed[run]}, see {run.log}"
        elif run.state != "finished":
            missing[run] = {"new": "not run yet", "unfinished": "not finished yet"}[run.state]
        else:
            try:
                numbers.setdefault(run.variant, {})[run.seed] = measure(read_curve(run.folder, samples), study)
            except NoNumbersError as error:
                missing[run] = str(error)
    estimates = {name: aggregate(study, by_seed) for name, by_seed in numbers.items()}
    table = report(title, study, samples, estimates, runs, missing)
    replace_text(out / "table.md", table)
    results = {
        "study": asdict(study),
        "validation_samples": samples,
        "variants": {name: asdict(each) for name, each in estimates.items()},
        "runs": [_run_entry(run, numbers[run.variant][run.seed]) for run in runs if run not in missing],
        "missing": [{"variant": run.variant, "seed": run.seed, "why": why} for run, why in missing.items()],
    }
    replace_text(out / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    draw(out, study, samples, numbers)
    Console().print(table, markup=False, highlight=False, soft_wrap=True)
    logger.info("table, figures, results.json and commands.sh: %s", out)


def _run_entry(run: PlannedRun, numbers: RunNumbers) -> dict[str, object]:
    summary: dict[str, object] = json.loads(run.folder.summary.read_text(encoding="utf-8"))
    return {
        "variant": run.variant,
        "seed": run.seed,
        "command": run.command,
        "end": _point_entry(numbers.end),
        "ranked": _point_entry(numbers.ranked),
        "area": numbers.area,
        "reached": numbers.reached,
        "updates": numbers.updates,
        "total": numbers.total,
        "by_purpose": summary["spent"],
        "versions": summary["versions"],
        "machine": json.loads(run.machine.read_text(encoding="utf-8")) if run.machine.is_file() else None,
        "curve": [_point_entry(point) for point in numbers.curve],
    }


def _point_entry(point: Point) -> dict[str, object]:
    return {"updates": point.updates, "spent": point.spent, "scores": point.scores}
