from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from handmade import four_updates, study, write_run
from matplotlib.figure import Figure

from resd_lightning.compare import command, figures
from resd_lightning.compare.command import write_results
from resd_lightning.compare.curve import measure, read_curve
from resd_lightning.compare.plan import PlannedRun
from resd_lightning.compare.study import Study, Variant
from resd_lightning.run_folder import RunFolder

T1 = 12.706204736  # Student's t for one degree of freedom

STUDY = study(
    variants={"resd": Variant(label="RESD"), "sdpo": Variant(label="SDPO | ss"), "grpo": Variant()},
    seeds=[0, 1],
    levels=[0.45, 0.65],
)


def planned(tmp_path: Path, variant: str, seed: int) -> PlannedRun:
    callbacks = [{"class_path": f"x.{variant.title()}"}, {"class_path": "x.Sync", "init_args": {"rate": 1}}]
    options = {
        "data": {"validation_samples": 4, "task": {"class_path": "x.Task"}},
        "trainer": {"callbacks": callbacks},
        "seed": seed,
        "run_dir": variant,
    }
    folder = RunFolder(tmp_path / "runs" / f"{variant}-seed{seed}")
    return PlannedRun(variant, seed, folder, (f"--seed_everything={seed}",), options)


@pytest.fixture
def runs(tmp_path: Path) -> list[PlannedRun]:
    """Two seeds of RESD and one of SDPO are finished; SDPO's other is not, and GRPO's have failed and not begun."""
    every = [planned(tmp_path, variant, seed) for seed in (0, 1) for variant in ("resd", "sdpo", "grpo")]
    resd0, sdpo0, _, resd1, sdpo1, _ = every
    write_run(resd0.folder.path, four_updates(0.0, 0.3, 0.6, 0.9))
    write_run(resd1.folder.path, four_updates(0.0, 0.5, 0.8, 0.5))
    write_run(sdpo0.folder.path, four_updates(0.1, 0.1, 0.1, 0.1)[:4])
    write_run(sdpo1.folder.path, four_updates(0.1, 0.1, 0.1, 0.1)[:2], is_finished=False)
    return every


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all else."""
    monkeypatch.setattr(command, "draw", lambda *args: [])


def results(
    tmp_path: Path, runs: list[PlannedRun], of: Study = STUDY
) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    write_results("small", of, tmp_path, runs, {runs[2]: 3})
    return json.loads((tmp_path / "results.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.usefixtures("no_figures")
def test_means_and_intervals_over_seeds(tmp_path: Path, runs: list[PlannedRun]) -> None:
    resd = results(tmp_path, runs)["variants"]["resd"]
    # Ends 0.6 and 0.8: a mean of 0.7 and a standard error of 0.1
    assert resd["end"]["per_task/mean"] == pytest.approx({"mean": 0.7, "half_width": T1 * 0.1, "num_values": 2})
    # The first run is best at its last validation within the budget, 0.6; the second too
    assert resd["ranked"]["per_test/best"] == pytest.approx({"mean": 0.7, "half_width": T1 * 0.1, "num_values": 2})
    # 60 tokens at 0.25, 30 at 0.65, 10 at 0.75 on the way from 0.8 to 0.7: 0.42, beside the first run's 0.29
    assert resd["area"]["per_task/mean"] == pytest.approx({"mean": 0.355, "half_width": T1 * 0.065, "num_values": 2})
    # 0.45 after 75 tokens, and after 54
    reached = resd["reached"]["0.45"]
    assert reached["spent"]["generated_tokens"] == pytest.approx(  # type: ignore[index]
        {"mean": 64.5, "half_width": T1 * 10.5, "num_values": 2}
    )
    assert resd["total"]["generated_tokens"] == {"mean": 120, "half_width": 0, "num_values": 2}
    assert resd["share_at_end"] == [0.9, 0.9]


@pytest.mark.usefixtures("no_figures")
def test_a_level_that_not_all_runs_reach_has_no_mean(tmp_path: Path, runs: list[PlannedRun]) -> None:
    write_run(runs[5].folder.path, four_updates(0.0, 0.9, 0.9, 0.9))
    write_run(runs[2].folder.path, four_updates(0.0, 0.1, 0.1, 0.1))
    write_results("small", STUDY, tmp_path, runs, {})
    grpo = json.loads((tmp_path / "results.json").read_text())["variants"]["grpo"]
    assert grpo["reached"]["0.65"] == {"num_reached": 1, "num_runs": 2, "spent": None}


@pytest.mark.usefixtures("no_figures")
def test_one_seed_has_a_mean_without_interval(tmp_path: Path, runs: list[PlannedRun]) -> None:
    sdpo = results(tmp_path, runs)["variants"]["sdpo"]
    assert sdpo["end"]["per_task/mean"] == {"mean": 0.1, "half_width": None, "num_values": 1}


@pytest.mark.usefixtures("no_figures")
def test_each_run_is_there_with_its_curve_command_and_spending(tmp_path: Path, runs: list[PlannedRun]) -> None:
    entries = results(tmp_path, runs)["runs"]
    assert [(run["variant"], run["seed"]) for run in entries] == [("resd", 0), ("sdpo", 0), ("resd", 1)]  # type: ignore[index]
    first = entries[0]  # type: ignore[index]
    assert first["command"] == "resd fit --seed_everything=0"
    assert first["end"]["scores"]["per_task/mean"] == 0.6
    assert first["end"]["spent"] == {"prompts": 16, "rollouts": 12, "generated_tokens": 90, "seconds": 6}
    assert [point["updates"] for point in first["curve"]] == pytest.approx([0, 2, 3, 3 + 1 / 3])
    assert first["by_purpose"] == {"requests/rollout": 16}


@pytest.mark.usefixtures("no_figures")
def test_the_table_is_made_of_what_is_there(tmp_path: Path, runs: list[PlannedRun]) -> None:
    results(tmp_path, runs)
    table = (tmp_path / "table.md").read_text().splitlines()
    assert table[0] == "# small"
    assert "Budget of a run: 100 generated tokens." in table[2]
    end = table[table.index("## At the end") + 2 :]
    assert end[0] == "| variant | seeds | per_task/mean@4 | per_task/best@4 | per_test/mean@4 | per_test/best@4 |"
    assert end[2] == "| RESD | 2 |" + " 0.700 ± 1.271 |" * 4
    assert end[3] == r"| SDPO \| ss | 1 |" + " 0.100 |" * 4
    assert end[4] == "| grpo | 0 |" + " - |" * 4
    until = table[table.index("## Until per_task/mean@4 first reaches 0.45") + 2 :]
    # 12 and 7.2 prompts, 10 and 7.2 rollouts, 75 and 54 tokens, 5 and 3.6 seconds
    assert until[2] == "| RESD | 10 ± 30 | 9 ± 18 | 64 ± 133 | 4.3 ± 8.9 |"
    assert until[3] == r"| SDPO \| ss | 0 of 1 runs | - | - | - |"
    assert until[4] == "| grpo | - | - | - | - |"
    spent = table[table.index("## Spent in all") + 2 :]
    assert spent[2] == "| RESD | 4 ± 0 | 16 ± 0 | 16 ± 0 | 120 ± 0 | 8.0 ± 0.0 | 90.0% |"
    assert spent[3] == r"| SDPO \| ss | 2 | 8 | 8 | 60 | 4.0 | 60.0% |"
    missing = table[table.index("## Runs without numbers") + 4 :]
    assert missing == [
        f"| grpo | 0 | failed with exit status 3, see {tmp_path}/runs/grpo-seed0.log |",
        r"| SDPO \| ss | 1 | not finished yet |",
        "| grpo | 1 | not run yet |",
    ]


@pytest.mark.usefixtures("no_figures")
def test_the_table_says_what_the_variants_differ_in(tmp_path: Path, runs: list[PlannedRun]) -> None:
    results(tmp_path, runs)
    table = (tmp_path / "table.md").read_text().splitlines()
    differing = table[table.index("## What the variants differ in") + 2 :]
    assert differing[0] == r"| key | RESD | SDPO \| ss | grpo |"
    assert differing[2] == (
        "| trainer.callbacks | Resd, Sync {'rate': 1} | Sdpo, Sync {'rate': 1} | Grpo, Sync {'rate': 1} |"
    )
    assert differing[3] == ""  # and in nothing else: neither seeds nor folders are theirs


@pytest.mark.usefixtures("no_figures")
def test_a_finished_run_without_numbers_is_named(tmp_path: Path, runs: list[PlannedRun]) -> None:
    write_run(runs[5].folder.path, four_updates(0.0, 0.1, 0.1, 0.1)[1:])
    results(tmp_path, runs)
    assert (
        f"| grpo | 1 | {tmp_path}/runs/grpo-seed1/metrics.jsonl has no numbers" in (tmp_path / "table.md").read_text()
    )


def test_figures_are_images_and_the_same_numbers_make_the_same_ones(
    tmp_path: Path, runs: list[PlannedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "UNITS", ("generated_tokens", "seconds"))
    stems = ["ends", *(f"curves_{unit}" for unit in figures.UNITS)]
    names = [f"{stem}.{suffix}" for stem in stems for suffix in ("png", "svg")]
    drawn = []
    for _ in range(2):
        results(tmp_path, runs)
        drawn.append({name: (tmp_path / name).read_bytes() for name in names})
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0].values())) == len(names)
    for name, data in drawn[0].items():
        if name.endswith("png"):
            assert data.startswith(b"\x89PNG")
        else:
            assert ElementTree.fromstring(data).tag.endswith("svg")


def test_a_variants_mean_line_and_band_are_drawn_as_far_as_all_its_runs_came(runs: list[PlannedRun]) -> None:
    whole, short = (measure(read_curve(run.folder, 4), STUDY) for run in (runs[0], runs[1]))
    axes = Figure().subplots()
    figures._draw(axes, [whole, short], STUDY, "generated_tokens", "both", 0)
    mean, *each = axes.get_lines()
    assert mean.get_label() == "both"
    assert (mean.get_xdata()[0], mean.get_xdata()[-1]) == (0, 60)
    assert mean.get_ydata()[-1] == pytest.approx((0.3 + 0.1) / 2)
    (band,) = axes.collections
    assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(0.2 + T1 * 0.1)
    assert [line.get_xdata()[-1] for line in each] == [pytest.approx(100), 60]


def test_nothing_finished_makes_a_table_that_says_so_and_no_figure(tmp_path: Path) -> None:
    runs = [planned(tmp_path, variant, seed) for seed in (0, 1) for variant in ("resd", "sdpo", "grpo")]
    write_results("small", STUDY, tmp_path, runs, {})
    assert (tmp_path / "table.md").read_text().count("not run yet") == 6
    assert not list(tmp_path.glob("*.png"))


def test_of_many_variants_only_the_ends_are_drawn(
    tmp_path: Path, runs: list[PlannedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "MOST_CURVES", 1)
    results(tmp_path, runs)
    assert [path.name for path in tmp_path.glob("*.png")] == ["ends.png"]


def test_the_dots_are_the_runs_ends_and_the_bar_their_mean_with_its_interval(
    tmp_path: Path, runs: list[PlannedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []
    monkeypatch.setattr(figures, "_save", lambda figure, *_: kept.append(figure) or [])
    figures.draw_ends(tmp_path, STUDY, 4, {"resd": [measure(read_curve(runs[i].folder, 4), STUDY) for i in (0, 3)]})
    (axes,) = kept[0].axes
    assert sorted(axes.lines[0].get_xdata()) == [pytest.approx(0.6), pytest.approx(0.8)]
    (bar,) = axes.collections[0].get_segments()
    assert [x for x, _ in bar] == [pytest.approx(0.7 - T1 * 0.1), pytest.approx(0.7 + T1 * 0.1)]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["RESD"]


@pytest.mark.usefixtures("no_figures")
def test_the_table_says_how_near_the_ends_came_to_the_budget(tmp_path: Path, runs: list[PlannedRun]) -> None:
    write_run(runs[2].folder.path, four_updates(0.0, 0.1, 0.1, 0.1)[:4])
    write_run(runs[5].folder.path, four_updates(0.0, 0.1, 0.1, 0.1))
    write_results("small", STUDY, tmp_path, runs, {})
    (line,) = [x for x in (tmp_path / "table.md").read_text().splitlines() if x.endswith("60.0% to 90.0% |")]
    assert line.startswith("| grpo | 3 ± 13 |")
