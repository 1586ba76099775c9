"""`resd compare` with real runs: one breaks, the others are compared; the second call goes on with what broke."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest
import yaml

from resd_lightning.cli import main
from resd_lightning.run_cli import SAMPLING_KEYS
from resd_lightning.run_folder import RunFolder, read_lines

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parents[1] / "configs"


def write_study(path: Path, base: Path, **options: object) -> None:
    """Write a study of SDPO, with an engine that holds and one that breaks, for six rollouts: three updates of two."""
    common: dict[str, object] = {
        "model.policy.base": str(base),
        "model.policy.dtype": "float32",
        "model.policy.lora.rank": 2,
        "model.optimizer.learning_rate": 0.01,
        "data.task": "resume_toy.CoinTask",
        "data.engine": "resume_toy.ReflectiveEngine",
        "data.batch_size": 2,
        "data.inner_updates": 2,
        "trainer.enable_model_summary": False,
        **{f"{key}.max_new_tokens": 6 for key in SAMPLING_KEYS},
    }
    breaks = {"data.engine": "compare_toy.BreakingEngine", "data.engine.init_args.mended": str(path.parent / "mended")}
    study = {
        "configs": [str(CONFIGS / "method" / "sdpo.yaml"), str(CONFIGS / "trainer" / "cpu.yaml")],
        "options": common | options,
        "variants": {"holds": {"label": "It holds"}, "breaks": {"options": breaks}},
        "seeds": [5],
        "budget": {"rollouts": 6},
    }
    path.write_text(yaml.safe_dump(study, sort_keys=False))


@pytest.fixture(autouse=True)
def own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `main` does to the process ends with the test; runs find the toys and use one thread."""
    monkeypatch.setattr(sys, "argv", ["resd"])
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.setenv("PYTHONPATH", f"{HERE}:{HERE.parents[1] / 'src'}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.timeout(900)  # a minute on two idle cores
def test_a_comparison_survives_a_broken_run_and_goes_on_with_it(
    tiny_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    study, out = tmp_path / "study.yaml", tmp_path / "out"
    holds, breaks = (RunFolder(out / "runs" / f"{name}-seed5") for name in ("holds", "breaks"))
    write_study(study, tiny_base)

    assert main(["compare", str(study), "--out", str(out)]) == 1
    assert f"failed: breaks, seed 5, exit status 1, see {breaks.path}.log" in caplog.text
    assert "this engine has broken" in Path(f"{breaks.path}.log").read_text()
    assert json.loads(breaks.summary.read_text())["is_finished"] is False
    assert "| It holds | 1 | " in (out / "table.md").read_text()
    assert "failed with exit status 1" in (out / "table.md").read_text()
    finished = holds.metrics.read_text()
    lines = list(read_lines(holds.metrics))
    assert [line["updates_done"] for line in lines if line["phase"] == "train"] == [1, 2, 3]
    assert [line["updates_done"] for line in lines if line["phase"] == "val"] == [0, 2, 3]

    (tmp_path / "mended").touch()
    caplog.clear()
    assert main(["compare", str(study), "--out", str(out)]) == 0
    assert "breaks, seed 5: goes on" in caplog.text
    assert "1 of 2 runs to make" in caplog.text
    assert "Restored all states" in Path(f"{breaks.path}.log").read_text()
    assert holds.metrics.read_text() == finished
    results = json.loads((out / "results.json").read_text())
    assert results["missing"] == []
    one, other = results["runs"]
    # The same seed and the same rollouts: the run that broke ends as the one that held.
    for entry in (one, other):
        assert entry["end"]["updates"] == 3
        assert entry["end"]["spent"]["rollouts"] == entry["total"]["rollouts"] == 6
        assert entry["end"]["spent"]["prompts"] == 4
        assert entry["command"] in (out / "commands.sh").read_text()
    assert one["area"] == other["area"]
    assert one["end"]["scores"] == other["end"]["scores"]

    write_study(study, tiny_base, **{"model.optimizer.learning_rate": 0.02})
    capsys.readouterr()
    assert main(["compare", str(study), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert f"{holds.path} was run with other options" in said
    assert "(model.optimizer.learning_rate: 0.01 -> 0.02)" in said

    assert main(["compare", str(study), "--out", str(out), "--variants=[reds]"]) == 2
    assert "--variants: the study has no ['reds'], only ['holds', 'breaks']" in capsys.readouterr().err
    write_study(study, tiny_base, **{"data.batch_size": 0})
    assert main(["compare", str(study), "--out", str(tmp_path / "new")]) == 2
    assert "variants.holds, seed 5: data.batch_size must be at least 1, got 0" in capsys.readouterr().err
    assert not (tmp_path / "new" / "runs" / "holds-seed5").exists()
