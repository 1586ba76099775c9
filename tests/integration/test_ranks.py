"""Two processes on the CPU, by ddp and by FSDP2: they end where one does, notice each other's faults, and resume.

So does one process under FSDP1.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import torch
from test_kill_and_resume import assert_same_state, run, start

from conftest import make_tiny_mixture

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
ROUNDINGS = 2e-3  # of a rate of 0.02: in fp32 Adam makes a step of a rounding where a gradient is all but zero
DOUBLE = "--trainer.precision=64-true"
# A sharded whole model can't share a prefix; with it, a rounding here turns a tie among the top-k.
WHOLE = ("--model.policy.lora=null", "--model.distillation.teacher_prefix=repeated")
DDP, FSDP2 = "ddp.yaml", "fsdp2.yaml"
FSDP1 = (
    "--trainer.strategy.class_path=ranks_toy.Fsdp1OnCpu",
    "--trainer.strategy.init_args.sharding_strategy=NO_SHARD",
)


def command(base: Path, run_dir: Path, strategy: str | None, *options: str, batches: int = 2) -> list[str]:
    """A run of the scripted trace, two updates for each batch of three prompts; strategy None is one process."""
    settings = {
        "run_dir": run_dir,
        "model.policy.base": base,
        "model.policy.dtype": "float32",
        "model.policy.lora.rank": 2,
        "model.policy.lora.alpha": 4,
        "model.teacher.ema_rate": 0.25,
        "model.distillation.top_k": 5,
        "model.distillation.success_weights": "true",
        "model.optimizer.learning_rate": 0.02,
        "model.optimizer.warmup_updates": 2,
        "model.context.max_entries": 4,
        "data.task": "ranks_toy.TraceTask",
        "data.engine": "ranks_toy.TraceEngine",
        "data.batch_size": 3,
        "data.inner_updates": 2,
        "data.max_batches": batches,
        "data.validation_samples": 2,
        "trainer.enable_progress_bar": "false",
    }
    files = ["method/resd.yaml", "trainer/cpu.yaml"]
    if strategy is not None:
        files.append(f"trainer/{strategy}")
        settings |= {"trainer.accelerator": "cpu", "trainer.precision": "32-true"}
    return [
        *(sys.executable, "-m", "resd_lightning", "fit"),
        *(f"--config={CONFIGS / file}" for file in files),
        *(f"--{key}={value}" for key, value in settings.items()),
        *options,
    ]


def end_of(run_dir: Path) -> dict[str, object]:
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True, map_location="cpu")


def assert_same_end(one: Path, other: Path, atol: float) -> None:
    ends = [end_of(folder) for folder in (one, other)]
    assert ends[0]["global_step"] == ends[1]["global_step"]
    contexts = [end["resd"]["context"] for end in ends]
    assert_same_state(*contexts, "context")
    for who in ("student", "teacher"):
        weights, others = (end["resd"]["policy"][who] for end in ends)
        assert weights.keys() == others.keys()
        for name, weight in weights.items():
            torch.testing.assert_close(others[name], weight, rtol=0, atol=atol, msg=f"{who} {name}")
    moments, others = (end["optimizer_states"][0]["state"] for end in ends)
    assert moments.keys() == others.keys()
    for number, moment in moments.items():
        assert float(moment["step"]) == float(others[number]["step"])


@pytest.fixture(scope="module")
def alone(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks") / "alone"
    run(command(tiny_base, folder, None), folder.parent / "alone.log")
    return folder


def test_two_processes_end_where_one_does(tiny_base: Path, tmp_path: Path) -> None:
    run(command(tiny_base, tmp_path / "alone", None, DOUBLE), tmp_path / "log")
    run(command(tiny_base, tmp_path / "run", DDP, DOUBLE), tmp_path / "log")
    assert_same_end(tmp_path / "alone", tmp_path / "run", atol=1e-6)


def test_sharded_they_end_where_ddp_does(tiny_base: Path, tmp_path: Path) -> None:
    run(command(tiny_base, tmp_path / "ddp", DDP), tmp_path / "log")
    run(command(tiny_base, tmp_path / "fsdp2", FSDP2), tmp_path / "log")
    assert_same_end(tmp_path / "ddp", tmp_path / "fsdp2", atol=ROUNDINGS)


def test_under_fsdp1_one_process_resumes_and_ends_as_without(tiny_base: Path, tmp_path: Path) -> None:
    options = ("--model.distillation.loss=fused", "--model.policy.gradient_checkpointing=true")
    run(command(tiny_base, tmp_path / "alone", None, *options), tmp_path / "log")
    die_at_once(command(tiny_base, tmp_path / "run", None, *FSDP1, *options), tmp_path)
    run(command(tiny_base, tmp_path / "run", None, *FSDP1, *options, "--ckpt_path=last", batches=1), tmp_path / "log")
    run(command(tiny_base, tmp_path / "run", None, *FSDP1, *options, "--ckpt_path=last"), tmp_path / "log")
    assert_same_end(tmp_path / "alone", tmp_path / "run", atol=0)


def die_at_once(command: list[str], folder: Path) -> None:
    """Run as far as the first update, which leaves a checkpoint of no step."""
    killed = start([*command, "--trainer.callbacks+=ranks_toy.DieAtOnce"], folder / "log")
    assert killed.wait(timeout=150) != 0
    assert end_of(folder / "run")["global_step"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        (),
        WHOLE,
        ("--model.policy.quantization=nf4",),
        ("--model.policy.dtype=bfloat16", "--trainer.precision=bf16-mixed", "--model.distillation.loss=fused"),
    ],
    ids=["adapters", "whole", "nf4", "16 bits"],
)
def test_a_run_moves_to_fsdp1_and_back(options: tuple[str, ...], tiny_base: Path, tmp_path: Path) -> None:
    run(command(tiny_base, tmp_path / "alone", None, *options), tmp_path / "log")
    for first, then in ((FSDP1, ()), ((), FSDP1)):
        folder = tmp_path / f"from-{len(first)}"
        run(command(tiny_base, folder, None, *first, *options, batches=1), tmp_path / "log")
        run(command(tiny_base, folder, None, *then, *options, "--ckpt_path=last"), tmp_path / "log")
        assert_same_end(tmp_path / "alone", folder, atol=0)


@pytest.mark.slow
def test_a_run_killed_before_its_first_step_goes_on_under_fsdp2(alone: Path, tiny_base: Path, tmp_path: Path) -> None:
    die_at_once(command(tiny_base, tmp_path / "run", None), tmp_path)
    run(command(tiny_base, tmp_path / "run", FSDP2, "--ckpt_path=last"), tmp_path / "log")
    assert_same_end(alone, tmp_path / "run", atol=ROUNDINGS)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [DDP, FSDP2])
@pytest.mark.parametrize(
    "options",
    [("--model.policy.quantization=nf4", "--model.policy.gradient_checkpointing=true"), WHOLE],
    ids=["nf4", "whole"],
)
def test_so_they_do_with_4_bit_and_with_all_weights(
    options: tuple[str, ...], strategy: str, tiny_base: Path, tmp_path: Path
) -> None:
    run(command(tiny_base, tmp_path / "alone", None, *options), tmp_path / "log")
    run(command(tiny_base, tmp_path / "run", strategy, *options), tmp_path / "log")
    assert_same_end(tmp_path / "alone", tmp_path / "run", atol=ROUNDINGS)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [DDP, FSDP2])
@pytest.mark.parametrize("adapted", ["[q_proj,k_proj,v_proj,o_proj]", "all-linear"], ids=["attention", "experts"])
def test_so_they_do_with_a_mixture_of_experts(strategy: str, adapted: str, tmp_path: Path) -> None:
    base, option = make_tiny_mixture(tmp_path / "base"), f"--model.policy.lora.target_modules={adapted}"
    run(command(base, tmp_path / "alone", None, option), tmp_path / "log")
    run(command(base, tmp_path / "run", strategy, option), tmp_path / "log")
    assert_same_end(tmp_path / "alone", tmp_path / "run", atol=ROUNDINGS)


@pytest.mark.slow
def test_so_they_do_in_16_bits(tiny_base: Path, tmp_path: Path) -> None:
    options = ("--model.policy.dtype=bfloat16", "--trainer.precision=bf16-mixed")
    run(command(tiny_base, tmp_path / "ddp", DDP, *options), tmp_path / "log")
    run(command(tiny_base, tmp_path / "fsdp2", FSDP2, *options), tmp_path / "log")
    assert_same_end(tmp_path / "ddp", tmp_path / "fsdp2", atol=ROUNDINGS)


@pytest.mark.slow
def test_a_run_moves_from_one_process_to_fsdp2_and_on_to_ddp(alone: Path, tiny_base: Path, tmp_path: Path) -> None:
    resume = "--ckpt_path=last"
    run(command(tiny_base, tmp_path / "run", None, batches=1), tmp_path / "log")
    run(command(tiny_base, tmp_path / "run", FSDP2, resume), tmp_path / "log")
    assert_same_end(alone, tmp_path / "run", atol=ROUNDINGS)
    run(command(tiny_base, tmp_path / "run", DDP, resume, batches=3), tmp_path / "log")
    assert end_of(tmp_path / "run")["global_step"] == 6


def test_a_playbook_that_differs_between_ranks_ends_the_run(tiny_base: Path, tmp_path: Path) -> None:
    harm = "--trainer.callbacks+=ranks_toy.ForgetOnOneRank"
    process = start(command(tiny_base, tmp_path / "run", DDP, harm), tmp_path / "log")
    assert process.wait(timeout=150) != 0
    assert "the playbooks before update 1 differ between processes" in (tmp_path / "log").read_text()


def test_a_rank_that_dies_ends_the_run_and_it_resumes_exactly(tiny_base: Path, tmp_path: Path) -> None:
    run(command(tiny_base, tmp_path / "whole", DDP), tmp_path / "log")
    harm = "--trainer.callbacks+=ranks_toy.DieOnOneRank"
    process = start(command(tiny_base, tmp_path / "run", DDP, harm), tmp_path / "log")
    written = tmp_path / "run" / "transcripts.jsonl"
    while process.poll() is None and not (written.exists() and len(written.read_text().splitlines()) >= 2 * 3):
        time.sleep(0.05)
    assert process.wait(timeout=60) != 0
    assert end_of(tmp_path / "run")["global_step"] == 2
    run(command(tiny_base, tmp_path / "run", DDP, "--ckpt_path=last"), tmp_path / "log")
    assert_same_end(tmp_path / "whole", tmp_path / "run", atol=0)
