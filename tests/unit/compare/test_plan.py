from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from handmade import four_updates, study, write_run

from resd_lightning.compare.plan import Composition, plan
from resd_lightning.compare.study import Variant
from resd_lightning.config import BudgetConfig, ConfigError

TWO = {"resd": Variant(), "sdpo": Variant(options={"model.rate": 0.5, "data.validation": [1, 2]})}


def compose(arguments: Sequence[str]) -> Composition:
    """Nest the options as the command line would; 512 prompts in batches of 32."""
    data: dict[str, object] = {"validation_samples": 4, "max_batches": None}
    options: dict[str, object] = {"data": data, "trainer": {"accelerator": "cpu"}}
    for argument in arguments:
        key, _, value = argument.removeprefix("--").partition("=")
        if key == "model.rate" and value == "wrong":
            raise ConfigError("model.rate must be a number, got 'wrong'")
        target = data if key.startswith("data.") else options
        target[key.removeprefix("data.")] = yaml.safe_load(value)
    return Composition(options, 32, 512)


def test_a_run_is_its_files_then_options_of_study_variant_and_seed(tmp_path: Path) -> None:
    for name in ("common", "own"):
        (tmp_path / f"{name}.yaml").write_text("{}")
    variants = {"sdpo": Variant(configs=[str(tmp_path / "own.yaml")], options={"a.own": True, "a.both": "own"})}
    wanted = study(
        variants=variants,
        seeds=[7, 8],
        configs=[str(tmp_path / "common.yaml")],
        options={"a.common": None, "a.both": "common"},
        per_seed={"a.world": [0, 101]},
    )
    first, second = plan(wanted, tmp_path / "out", compose)
    assert first.arguments == (
        "--trainer.enable_progress_bar=false",
        f"--config={tmp_path}/common.yaml",
        f"--config={tmp_path}/own.yaml",
        "--a.common=null",
        "--a.both=own",
        "--a.own=true",
        "--a.world=0",
        "--budget.generated_tokens=100",
        "--seed_everything=7",
        f"--run_dir={tmp_path}/out/runs/sdpo-seed7",
    )
    assert second.arguments[6] == "--a.world=101"
    assert second.arguments[-2:] == ("--seed_everything=8", f"--run_dir={tmp_path}/out/runs/sdpo-seed8")
    assert first.command.startswith("resd fit --trainer.enable_progress_bar=false --config=")


def test_runs_go_seed_by_seed_so_that_the_first_finished_can_be_compared(tmp_path: Path) -> None:
    runs = plan(study(variants=TWO, seeds=[0, 1]), tmp_path, compose)
    assert [(run.variant, run.seed) for run in runs] == [("resd", 0), ("sdpo", 0), ("resd", 1), ("sdpo", 1)]
    assert "--data.validation=[1, 2]" in runs[1].arguments


@pytest.mark.parametrize(("prompts", "batches"), [(32, 1), (33, 2), (64, 2), (512, 16)])
def test_a_budget_of_prompts_bounds_the_batches(tmp_path: Path, prompts: int, batches: int) -> None:
    (run,) = plan(study(budget=BudgetConfig(prompts=prompts)), tmp_path, compose)
    assert run.arguments[-1] == f"--data.max_batches={batches}"
    assert run.options["data"] == {"validation_samples": 4, "max_batches": batches}


@pytest.mark.parametrize("budget", [BudgetConfig(rollouts=64), BudgetConfig(generated_tokens=64)])
def test_other_budgets_are_left_to_the_run_itself(tmp_path: Path, budget: BudgetConfig) -> None:
    (run,) = plan(study(budget=budget), tmp_path, compose)
    assert not any("max_batches" in argument for argument in run.arguments)


def test_more_prompts_than_the_task_has_are_refused(tmp_path: Path) -> None:
    said = r"variants\.resd, seed 0: budget\.prompts is 513, but data\.task yields 512 training prompts in full batches"
    with pytest.raises(ConfigError, match=said):
        plan(study(budget=BudgetConfig(prompts=513)), tmp_path, compose)


def test_what_fit_refuses_is_refused_by_the_variants_name(tmp_path: Path) -> None:
    variants = {"resd": Variant(), "sdpo": Variant(options={"model.rate": "wrong"})}
    with pytest.raises(ConfigError, match=r"variants\.sdpo, seed 0: model\.rate must be a number, got 'wrong'"):
        plan(study(variants=variants), tmp_path, compose)


def test_variants_whose_scores_have_another_k_are_refused(tmp_path: Path) -> None:
    variants = {"resd": Variant(), "sdpo": Variant(options={"data.validation_samples": 8})}
    with pytest.raises(ConfigError, match=r"data\.validation_samples must be the same .* {'resd': 4, 'sdpo': 8}"):
        plan(study(variants=variants), tmp_path, compose)


def test_a_folder_is_new_unfinished_or_finished(tmp_path: Path) -> None:
    (run,) = plan(study(), tmp_path, compose)
    assert run.state == "new"
    write_run(run.folder.path, four_updates(0, 0, 0, 0), is_finished=False)
    assert run.state == "unfinished"
    run.folder.summary.write_text(json.dumps({"is_finished": True}))
    assert run.state == "finished"
    run.folder.summary.unlink()  # killed before its first validation
    assert run.state == "unfinished"


@pytest.mark.parametrize("is_finished", [True, False])
def test_a_run_of_other_options_is_refused_by_the_keys_that_differ(tmp_path: Path, is_finished: bool) -> None:
    (then,) = plan(study(options={"a.rate": 1, "data.batch_size": 4}), tmp_path, compose)
    write_run(then.folder.path, four_updates(0, 0, 0, 0), is_finished=is_finished)
    then.folder.config.write_text(yaml.safe_dump(dict(then.options)))
    then.check_unchanged()
    (now,) = plan(study(options={"a.rate": 1, "data.batch_size": 8, "b": True}), tmp_path, compose)
    with pytest.raises(ConfigError) as refused:
        now.check_unchanged()
    assert str(refused.value) == (
        f"{now.folder.path} was run with other options than the study asks for now "
        "(b: (unset) -> True; data.batch_size: 4 -> 8): choose another --out, or delete that folder to run it again"
    )


def test_a_study_may_be_moved(tmp_path: Path) -> None:
    (then,) = plan(study(), tmp_path / "there", compose)
    write_run(then.folder.path, four_updates(0, 0, 0, 0))
    then.folder.config.write_text(yaml.safe_dump(dict(then.options)))
    (tmp_path / "there").rename(tmp_path / "here")
    (now,) = plan(study(), tmp_path / "here", compose)
    assert now.state == "finished"
    now.check_unchanged()
