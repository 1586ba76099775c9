"""`resd plan` composes as `resd fit` does, reads no weight, and refuses by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_plan_memory import QWEN3_30B_A3B, write_config

from resd_lightning.cli import main
from resd_lightning.config import ConfigError
from resd_lightning.plan.command import CARDS, choose_card, count_devices
from resd_lightning.policy import load

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
MODELS = sorted(path.name for path in (CONFIGS / "model").glob("*.yaml"))
MANUFACTORIA = ("task/manufactoria.yaml", "method/resd.yaml", "trainer/gpu.yaml")

EIGHT = ["--trainer.devices=8", "--trainer.strategy.init_args.data_parallel_size=8"]


def files(*names: str) -> list[str]:
    return [f"--config={CONFIGS / name}" for name in names]


def plan(tmp_path: Path, *arguments: str) -> tuple[int, dict[str, object]]:
    """Return the exit status of `resd plan` and what it wrote."""
    out = tmp_path / "plan.json"
    status = main(["plan", *arguments, f"--json={out}"])
    return status, json.loads(out.read_text())


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "load_base", lambda *_: pytest.fail("weights were loaded"))


@pytest.mark.parametrize("name", MODELS)
def test_every_shipped_model_comes_to_a_plan_where_its_base_is_at_hand(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = files(f"model/{name}", *MANUFACTORIA)
    if name.startswith("micro"):
        arguments = files(f"model/{name}", "task/tape_machines.yaml", "method/resd.yaml", "trainer/cpu.yaml")
    elif name.startswith("qwen3_4b"):
        arguments.append(f"--model.policy.base={write_config(tmp_path / 'qwen')}")
    elif name.startswith("qwen3_30b"):
        arguments = [*files(f"model/{name}", *MANUFACTORIA[:2], "trainer/fsdp2.yaml"), *EIGHT]
        arguments.append(f"--model.policy.base={write_config(tmp_path / 'mixture', **QWEN3_30B_A3B)}")
    elif not (CONFIGS.parent / "models" / "smollm2-135m-instruct").is_dir():
        pytest.skip("SmolLM2 is not at hand")
    else:
        arguments += files("smollm2_manufactoria.yaml")
    monkeypatch.chdir(CONFIGS.parent)
    status, found = plan(tmp_path, *arguments, "--card=h200" if "30b" in name else "--card=rtx4090")
    assert (status, found["fits"]) == (0, True)
    phases = {phase["name"]: phase["bytes"] for phase in found["phases"]}  # type: ignore[attr-defined]
    assert list(phases)[:2] == ["rollout", "reflect, tag, curate"]
    assert phases[found["peak"]] == max(phases.values()) < found["room"]
    assert sum(item["bytes"] for item in found["phases"][0]["items"]) == phases["rollout"]  # type: ignore[index]
    out = capsys.readouterr().out
    if name.startswith(("micro", "smollm2")):
        assert found["prompts"]["too_long"] == 0  # type: ignore[index]
        assert "Of the first" in out
    else:  # a config file alone: said, and no reason to fail
        assert found["prompts"] is None
        assert "training prompts aren't measured, and `resd fit` will refuse to start" in " ".join(out.split())


def test_what_does_not_fit_says_what_would_help_and_exits_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = f"--model.policy.base={write_config(tmp_path / 'qwen')}"
    arguments = files("model/qwen3_4b_qlora.yaml", *MANUFACTORIA)
    status, found = plan(tmp_path, *arguments, base, "--card_gib=16", "--reserve_gib=1")
    assert (status, found["fits"], found["room"]) == (1, False, 15 * 2**30)
    options = [each["options"] for each in found["suggestions"]]  # type: ignore[attr-defined]
    assert "--data.engine.init_args.batch_size 4" in options
    assert "It does not fit" in capsys.readouterr().out


def test_prompts_that_are_too_long_are_counted(tmp_path: Path) -> None:
    arguments = files("model/micro.yaml", "task/tape_machines.yaml", "method/resd.yaml", "trainer/cpu.yaml")
    _, found = plan(tmp_path, *arguments, "--card_gib=8", "--data.max_prompt_tokens=8")
    assert found["prompts"]["too_long"] == found["prompts"]["count"] > 0  # type: ignore[index]


def test_data_that_is_not_at_hand_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = files("model/micro.yaml", "task/finer.yaml", "method/resd.yaml", "trainer/cpu.yaml")
    _, found = plan(tmp_path, *arguments, "--card_gib=8", "--data.max_prompt_tokens=64")
    assert found["prompts"] is None
    assert "train_path" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--data.rollout.temperature=-1", "data.rollout.temperature must be at least 0"),
        ("--data.rollout.max_new_tokens=9000000", "data.max_prompt_tokens + data.rollout.max_new_tokens is"),
        ("--model.policy.base=nowhere", "model.policy.base 'nowhere'"),
        ("--trainer.max_steps=3", "trainer.max_steps is 3"),
        ("--trainer.strategy=deepspeed", "trainer.strategy DeepSpeedStrategy isn't supported"),
        ("--trainer.strategy=sharded", "trainer.strategy 'sharded' is none that Lightning knows"),
        ("--trainer.devices=0", "trainer.devices must be at least one"),
        ("--trainer.num_nodes=0", "trainer.num_nodes must be at least 1"),
        ("--trainer.devices=two", "trainer.devices 'two' is no number of devices"),
        ("--card=abacus", "--card abacus is none of"),
        ("--trainer.callbacks=[ReflectOnFailures,ConcisePlaybook]", "ConcisePlaybook"),
    ],
)
def test_options_that_fit_refuses_are_refused_by_name(
    option: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = [] if option.startswith("--card") else ["--card_gib=24"]
    arguments = files("model/micro.yaml", "task/tape_machines.yaml", "method/resd.yaml", "trainer/cpu.yaml")
    assert main(["plan", *arguments, *card, option]) == 2
    assert said in capsys.readouterr().err


def test_devices_share_an_update_and_with_fsdp2_the_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = f"--model.policy.base={write_config(tmp_path / 'qwen')}"
    found = {}
    for name, options in {"gpu": [], "ddp": ["--trainer.devices=8"], "fsdp2": EIGHT}.items():
        arguments = files("model/qwen3_4b_qlora.yaml", *MANUFACTORIA[:2], f"trainer/{name}.yaml")
        _, found[name] = plan(tmp_path, *arguments, base, "--card=h200", *options)
    assert "h200, each of 8" in capsys.readouterr().out
    held = {name: found[name]["phases"][0]["items"][0]["bytes"] for name in found}  # type: ignore[index]
    assert held["gpu"] == held["ddp"] > held["fsdp2"]
    seconds = {name: [phase["least_s"] for phase in found[name]["work"]] for name in found}  # type: ignore[attr-defined]
    assert seconds["ddp"] == seconds["fsdp2"] == pytest.approx([each / 8 for each in seconds["gpu"]], rel=0.75)
    assert sum(seconds["gpu"]) > 2 * sum(seconds["ddp"])  # not eight times: each still reads all weights in every step


def test_engines_that_cannot_gather_are_refused_as_a_run_refuses_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = f"--model.policy.base={write_config(tmp_path / 'qwen')}"
    arguments = files("model/qwen3_4b_qlora.yaml", *MANUFACTORIA[:2], "trainer/fsdp2.yaml")
    engine = "--data.engine=resd_lightning.rollout.continuous.ContinuousEngine"
    assert main(["plan", *arguments, base, "--card=h200", *EIGHT, engine]) == 2
    assert "data.engine ContinuousEngine" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "count"), [("auto", 1), (-1, 1), (1, 1), (4, 4), ("2", 2), ("0,1,3", 3), ([5, 6], 2)]
)
def test_devices_are_counted_as_lightning_reads_them(asked: int | str | list[int], count: int) -> None:
    assert count_devices(asked) == count


def test_a_card_is_named_or_measured_out() -> None:
    assert choose_card("rtx4090", None, 2.0).room == 22 * 2**30
    assert choose_card(None, 10.0, 0.0).room == 10 * 2**30
    assert all(choose_card(name, None, 2.0).gib == gib for name, (gib, _) in CARDS.items())
    for name, gib, reserve, said in [
        (None, None, 2.0, "one of --card_gib"),
        ("rtx4090", 24.0, 2.0, "one of --card_gib"),
        ("abacus", None, 2.0, "--card abacus is none of"),
        (None, -1.0, 0.0, "--card_gib must be above 0"),
        (None, 2.0, 2.0, "--reserve_gib must be"),
    ]:
        with pytest.raises(ConfigError, match=said):
            choose_card(name, gib, reserve)
