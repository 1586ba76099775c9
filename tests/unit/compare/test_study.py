from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from resd_lightning.compare.plan import plan
from resd_lightning.compare.study import Variant, read_study
from resd_lightning.config import BudgetConfig, ConfigError
from resd_lightning.plan_cli import compose

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
RIGHT = "variants: {resd: {}, sdpo: {}}\nseeds: [0, 1]\nbudget: {prompts: 64}\n"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    return path


def test_a_study_is_read_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "sdpo.yaml").write_text("{}")
    text = f"""
configs: [{tmp_path / "sdpo.yaml"}]
options: {{data.batch_size: 4, model.optimizer.learning_rate: 1.0e-3}}
variants:
  resd: {{}}
  sdpo_ss: {{label: SDPO+ss, configs: [{tmp_path / "sdpo.yaml"}], options: {{model.teacher_prompt.self_success: own}}}}
seeds: [3, 5]
per_seed: {{data.task.init_args.mapping_seed: [0, 101]}}
budget: {{generated_tokens: 1000}}
metric: per_test/best
levels: [0.5, 1]
"""
    study = read_study(write(tmp_path, text))
    assert study.variants["resd"] == Variant()
    assert study.variants["sdpo_ss"].options == {"model.teacher_prompt.self_success": "own"}
    assert study.labels == {"resd": "resd", "sdpo_ss": "SDPO+ss"}
    assert (study.currency, study.limit, study.budget) == (
        "generated_tokens",
        1000,
        BudgetConfig(generated_tokens=1000),
    )
    assert (study.seeds, study.per_seed) == ([3, 5], {"data.task.init_args.mapping_seed": [0, 101]})
    assert study.options == {"data.batch_size": 4, "model.optimizer.learning_rate": 0.001}
    assert (study.metric, study.levels) == ("per_test/best", [0.5, 1.0])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (RIGHT + "seed: [0]", "'seed' is not accepted"),
        ("variants: {resd: {confgs: []}}\nseeds: [0]\nbudget: {prompts: 64}", "'confgs' is not accepted"),
        ("variants: {}\nseeds: [0]\nbudget: {prompts: 64}", "variants must be at least one variant"),
        ("variants: {a b: {}}\nseeds: [0]\nbudget: {prompts: 64}", "variants must be named by letters, digits and"),
        ("variants: {a: {label: X}, b: {label: X}}\nseeds: [0]\nbudget: {prompts: 1}", "labelled differently"),
        ("variants: {a: {}}\nseeds: []\nbudget: {prompts: 64}", "seeds must be at least one seed"),
        (
            "variants: {a: {}}\nseeds: [0, 0]\nbudget: {prompts: 64}",
            "seeds must be different from each other, got [0, 0]",
        ),
        ("variants: {a: {}}\nseeds: [x]\nbudget: {prompts: 64}", '"seeds"'),
        ("variants: {a: {}}\nseeds: [0]\nbudget: {}", "budget must be in exactly one currency"),
        ("variants: {a: {}}\nseeds: [0]\nbudget: {prompts: 1, rollouts: 1}", "budget must be in exactly one currency"),
        ("variants: {a: {}}\nseeds: [0]\nbudget: {prompts: 0}", "budget.prompts must be at least 1, got 0"),
        ("variants: {a: {}}\nseeds: [0]\nbudget: {updates: 1}", "Group 'budget' does not accept option 'updates'"),
        (RIGHT + "levels: [1.5]", "levels must be above 0 and at most 1, got [1.5]"),
        (RIGHT + "metric: per_task/median", '"metric"'),
        (RIGHT + "per_seed: {data.seed_of_task: [0]}", "per_seed.data.seed_of_task must be one value for each of the"),
        (RIGHT + "options: {seed_everything: 3}", "options: seed_everything is not the options' to set"),
        (RIGHT + "options: {budget.rollouts: 3}", "options: budget.rollouts is not the options' to set"),
        (RIGHT + "configs: [/nowhere.yaml]", "configs must be files that exist, seen from"),
        (
            "variants: {a: {configs: [/nowhere.yaml]}}\nseeds: [0]\nbudget: {prompts: 1}",
            "variants.a.configs must be files that exist",
        ),
        (
            "variants: {a: {options: {run_dir: x}}}\nseeds: [0]\nbudget: {prompts: 1}",
            "variants.a.options: run_dir is not the options' to set",
        ),
        ("variants: [", "Problems parsing config"),
    ],
)
def test_a_wrong_study_is_refused_by_file_and_key(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as refused:
        read_study(path)
    assert str(refused.value).startswith(f"study {path}: ")
    assert said in str(refused.value)


def test_a_study_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
        read_study(tmp_path / "none.yaml")


@pytest.mark.parametrize("path", sorted((CONFIGS / "study").glob("*.yaml")), ids=lambda path: path.name)
def test_every_variant_of_every_shipped_study_is_a_valid_configuration(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # what composing sets ends with the test
    study = read_study(path)
    worlds = {key: values[:1] for key, values in study.per_seed.items()}
    runs = plan(replace(study, seeds=study.seeds[:1], per_seed=worlds), tmp_path, compose)
    assert [run.variant for run in runs] == list(study.variants)
    assert len({str(run.options) for run in runs}) == len(runs) >= 2
    assert not list(tmp_path.iterdir())
