"""Each benchmark runs at its smallest setting, here in one process, and measures what it says."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.filterwarnings("default"),  # what the peers, and a command line given as a list, say of themselves
    pytest.mark.skipif(sys.platform != "linux", reason="peaks of memory come from /proc"),
]

Run = Callable[..., dict]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs a script with options and returns what it wrote; its cases, else processes, run in this one."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")

    def run_script(name: str, *options: str) -> dict:
        script = import_module(name)

        def run_here(_: str, arguments: list[str]) -> dict:
            with redirect_stdout(io.StringIO()) as output, monkeypatch.context() as patch:
                patch.setattr(sys, "argv", [name, *arguments])
                script.main()
            return json.loads(output.getvalue().splitlines()[-1])

        out = tmp_path / "results" / f"{name}.json"
        monkeypatch.setattr(script, "run_apart", run_here)
        monkeypatch.setattr(sys, "argv", [name, *options, f"--out={out}"])
        script.main()
        return json.loads(out.read_text())

    return run_script


def test_resd_writes_what_its_reflector_and_curator_are_limited_to(run: Run) -> None:
    small = ("--prompts=2", "--prompt_tokens=16", "--feedback_tokens=8", "--response_tokens=16", "--context_tokens=4")
    report = run("long_responses", *small, "--repeats=1")
    sdpo, resd = report["cases"]
    assert sdpo["written"] == {"tokens/rollout_generated": 2 * 16}
    assert resd["written"] == sdpo["written"] | {"tokens/reflect_generated": 2 * 4, "tokens/curate_generated": 2 * 4}
    assert report["RESD / SDPO"]["generated tokens"] == pytest.approx(1.5)
    assert report["RESD / SDPO"]["tokens through the model"] > 1.5


SMALL_UPDATE = ("--models=tiny", "--prompt_tokens=16", "--feedback_tokens=8", "--response_tokens=16")


def test_both_packages_train_on_as_many_tokens_and_come_to_about_the_same_loss(run: Run) -> None:
    has_trl = find_spec("trl") is not None
    packages = ["ours", "ours_plain", *(["trl"] if has_trl else [])]
    report = run("update", *SMALL_UPDATE, "--packages", *packages, "--methods")
    assert [case["case"] for case in report["cases"]] == packages
    assert all(case["response_tokens"] == 8 * 16 for case in report["cases"])
    assert len({case["teacher_tokens"] for case in report["cases"]}) == 1
    fused, plain, *trl = (case["losses"] for case in report["cases"])
    assert fused == pytest.approx(plain, abs=2e-4)
    for losses in trl:  # their own samples
        assert losses == pytest.approx(fused, rel=0.3)
    assert set(report["ratios"]) == ({"tiny: this / TRL", "tiny: this, plain loss / TRL"} if has_trl else set())


def test_resd_costs_more_than_sdpo_by_its_context_calls_and_its_longer_teacher_prompts(run: Run) -> None:
    report = run("update", "--models", "--micro_updates=1")
    ratio = report["ratios"]["micro-lm: RESD / SDPO"]
    assert ratio["generated tokens"] > 1
    assert ratio["tokens through the model"] > 1
    sdpo, resd = (case["updates"][0] for case in report["cases"])
    assert "time/reflect_processor_s" in resd["phases"]
    assert "time/reflect_processor_s" not in sdpo["phases"]
    for update in (sdpo, resd):
        phases = sum(value for name, value in update["phases"].items() if name.endswith("_processor_s"))
        assert 0 < phases <= update["seconds"]


def test_context_calls_one_at_a_time_bring_the_same_texts(run: Run) -> None:
    report = run("context_calls", "--prompts=4", "--warmup=1", "--updates=1")
    total = report["ratios"]["all"]
    assert total["requests"] >= 2
    assert total["same_texts"] == 1.0
    assert total["single_s"] > 0 < total["batched_s"]


def test_rollouts_are_the_same_in_batches_of_any_kind(run: Run) -> None:
    sizes = ("--prompts=6", "--batch_size=2", "--hidden=64", "--layers=1", "--vocab=512", "--response_tokens=8")
    report = run("rollouts", *sizes, "--prompt_tokens", "4", "16", "--shared_tokens=32")
    assert {case["case"]: case["same_responses"] for case in report["cases"]} == dict.fromkeys(
        ("sorted", "arrival", "single", "continuous"), 1.0
    )
    assert len({case["tokens"] for case in report["cases"]}) == 1


def test_a_checkpoint_is_gone_on_with_and_every_operation_of_a_playbook_is_timed(run: Run) -> None:
    report = run("state", "--entries=10", "--repeats=1")
    save, resume = report["checkpoint"]["save"], report["checkpoint"]["resume"]
    assert save["bytes"] > sum(save["tensors"].values()) > 0
    assert resume["before_first_update_s"] > 0
    assert [case["lessons"] for case in report["playbooks"]] == ["short", "long"]
    assert all(value > 0 for case in report["playbooks"] for value in case["us"].values())
