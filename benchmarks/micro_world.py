"""Runs the quickstart, and variants of it, over seeds: success before and after, truth of the playbook, seconds.

    python benchmarks/micro_world.py --variants resd nf4 --seeds 0 1 2 --out benchmarks/results/micro_world.json

A variant is the quickstart with other options; `--out` keeps what earlier calls wrote there of other variants, seeds
and worlds. `wall_s` is a whole process with its start, on `threads` threads beside `jobs` - 1 others.
`--figure docs/images/quickstart.png` draws the validation curves of the results.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from resd_lightning.compare.launch import cpu

ROOT = Path(__file__).resolve().parents[1]
METHOD = "--config=configs/method/resd_"
VARIANTS: dict[str, list[str]] = {
    "resd": [],
    "nf4": ["--config=configs/model/micro_nf4.yaml"],
    "full": ["--config=configs/model/micro_full.yaml"],
    "no_reflection": [f"{METHOD}no_reflection.yaml"],
    "no_playbook": [f"{METHOD}no_playbook.yaml"],
    "no_buffer": [f"{METHOD}no_buffer.yaml"],
    "no_success_tags": [f"{METHOD}no_success_tags.yaml"],
    "author_student": ["--model.context.author=student"],
    "author_teacher": ["--model.context.author=teacher"],
    "author_base": ["--model.context.author=base"],
    "sdpo": ["--config=configs/method/sdpo.yaml"],
    "reduced": ["--config=configs/quickstart_ci.yaml"],
}
METRIC = "val/per_task/mean@4"


def run(variant: str, seed: int, mapping_seed: int, runs: Path, threads: int, extra: list[str]) -> dict[str, object]:
    """Run one variant and return its numbers."""
    folder = runs / f"{variant}-seed{seed}-world{mapping_seed}"
    command = [sys.executable, "-m", "resd_lightning", "fit", "--config=configs/quickstart.yaml"]
    command += [*VARIANTS[variant], f"--seed_everything={seed}", f"--run_dir={folder}", "--overwrite=true"]
    command += [f"--data.task.init_args.mapping_seed={mapping_seed}", "--trainer.enable_progress_bar=false", *extra]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    began = time.perf_counter()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".log").open("w") as log:
        status = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=log, check=False).returncode
    if status != 0:
        raise SystemExit(f"{folder}: exit status {status}, see {folder.with_suffix('.log')}")
    wall_s = round(time.perf_counter() - began, 1)
    summary = json.loads((folder / "summary.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    curve = [(line["updates_done"], line[METRIC]) for line in lines if line.get("phase") == "val"]
    metrics = summary["metrics"]
    return {
        "variant": variant,
        "seed": seed,
        "mapping_seed": mapping_seed,
        "first": metrics[METRIC]["first"],
        "last": metrics[METRIC]["last"],
        "best": metrics[METRIC]["best"],
        "playbook_true_share": metrics.get("playbook/true_share", {}).get("last"),
        "playbook_size": metrics.get("playbook/size", {}).get("last"),
        "options": extra,
        "versions": summary["versions"],
        "wall_s": wall_s,
        "phases_s": sum(value for name, value in summary["spent"].items() if name.startswith("time/")),
        "curve": curve,
    }


def draw(results: list[dict[str, object]], path: Path) -> None:
    """Draw the validation curves, one colour for a variant and one line for a run."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.6), dpi=150, layout="constrained")
    names = list(dict.fromkeys(str(result["variant"]) for result in results))
    colours = dict(zip(names, plt.get_cmap("tab20").colors, strict=False))
    for result in results:
        updates, values = zip(*result["curve"], strict=True)
        name = str(result["variant"])
        axes.plot(updates, values, color=colours[name], alpha=0.8, marker="o", markersize=2.5, label=name)
    axes.axhline(1 / 16, color="grey", linewidth=0.8, linestyle=":")
    axes.annotate(
        "a guess, 1/16", (0.99, 1 / 16), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8
    )
    axes.set(xlabel="policy updates", ylabel="success on unseen tapes (mean@4)", ylim=(0, 1.02))
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    if len(unique) > 1:
        axes.legend(unique.values(), unique.keys(), fontsize=8, loc="center right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    """Parse the command line, run what is missing, write and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="*", default=["resd"], choices=list(VARIANTS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--mapping_seeds", nargs="*", type=int, default=[0], help="paired with the seeds, or one for all"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/micro_world"))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--figure", type=Path, default=None)
    parser.add_argument("extra", nargs="*", help="further options of `resd fit`, after --")
    options = parser.parse_args()
    worlds = options.mapping_seeds if len(options.mapping_seeds) > 1 else options.mapping_seeds * len(options.seeds)
    threads = max(1, (os.cpu_count() or 1) // options.jobs)
    with ThreadPoolExecutor(options.jobs) as pool:
        asked = [
            pool.submit(run, variant, seed, world, options.runs.resolve(), threads, options.extra)
            for variant in options.variants
            for seed, world in zip(options.seeds, worlds, strict=True)
        ]
        machine = {"cpu": cpu(), "cores": os.cpu_count(), "jobs": options.jobs, "threads": threads}
        results = [future.result() | machine for future in asked]
    shown = (
        "variant",
        "seed",
        "mapping_seed",
        "first",
        "last",
        "best",
        "playbook_true_share",
        "playbook_size",
        "wall_s",
    )
    print("  ".join(shown))
    for result in results:
        print(
            "  ".join(f"{result[name]:.3f}" if isinstance(result[name], float) else str(result[name]) for name in shown)
        )
    if options.out is not None:
        earlier = json.loads(options.out.read_text())["runs"] if options.out.exists() else []
        new = {(r["variant"], r["seed"], r["mapping_seed"]) for r in results}
        kept = [r for r in earlier if (r["variant"], r["seed"], r["mapping_seed"]) not in new]
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"runs": kept + results}, indent=1) + "\n")
    if options.figure is not None:
        draw(results, options.figure)


if __name__ == "__main__":
    main()
