"""The benchmark of the loss measures what it says; its peers are only there where the extra `bench` is installed."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = argparse.Namespace(
    vocab=4096, hidden=16, top_k=20, alpha=0.5, chunk_tokens=64, device="cpu", dtype="float32", threads=1, repeats=1
)


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return import_module("loss")


@pytest.mark.skipif(sys.platform != "linux", reason="peaks of memory come from /proc")
def test_the_cases_of_this_package_give_one_loss_at_different_peaks(benchmark: ModuleType) -> None:
    small = [f"--{key}={value}" for key, value in vars(OPTIONS).items()]
    fused, plain = (benchmark.measure_apart(name, 1024, small) for name in ("fused", "plain"))
    assert fused["loss"] == pytest.approx(plain["loss"], rel=1e-4)
    logits_mib = 1024 * 4096 * 4 / 2**20
    assert plain["peak_mib"] > 2 * logits_mib
    assert 0 < fused["peak_mib"] < logits_mib
    lines = benchmark.table([fused, plain]).splitlines()
    assert lines[2].startswith("| 1024 | this, fused | ")
    assert lines[2].endswith("| 1.0 | 1.00 |")


def test_the_tails_error_is_small_in_the_fused_loss_and_grows_in_the_plain_one(benchmark: ModuleType) -> None:
    errors = benchmark.tail_errors(OPTIONS)
    assert max(row["fused"] for row in errors) < 1e-5
    assert errors[0]["plain"] < 1e-5
    assert errors[-1]["plain"] > 1


@pytest.mark.filterwarnings("ignore")  # what the peers say of themselves on import
@pytest.mark.parametrize("name", ["trl_top_k", "liger_eager"])
def test_the_peers_compute_on_the_same_hidden_states(name: str, benchmark: ModuleType) -> None:
    loss, _, needs = benchmark.CASES[name]
    pytest.importorskip(needs)
    student, teacher, head = torch.randn(64, 16, requires_grad=True), torch.randn(64, 16), torch.randn(4096, 16)
    value = loss(student, teacher, head, OPTIONS)
    value.backward()
    assert student.grad is not None
    ours = benchmark.plain(student, teacher, head, OPTIONS).item()
    # Comparing all tokens finds at least what comparing some and a tail does.
    assert value.item() == pytest.approx(ours, rel=1e-4) if name == "trl_top_k" else value.item() > ours
