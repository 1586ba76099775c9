from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from resd_lightning.config import ConfigError, LoraSettings
from resd_lightning.forgetting import _write_scalars, compare, find_subject, forgetting, table
from resd_lightning.harness import HarnessSettings, Score
from resd_lightning.run_folder import RunFolder

POLICY = {"base": "some/base", "dtype": "float32", "quantization": "nf4", "gradient_checkpointing": True}


def test_base_and_student_side_by_side_with_what_was_lost_and_gained() -> None:
    before = {
        ("quiz", "acc"): Score(0.75, 0.25, True, {0: True, 1: True, 2: True, 3: False}),
        ("text", "perplexity"): Score(12.0, None, False, None),
        ("text", "error"): Score(0.5, None, False, {0: True, 1: False}),
    }
    after = {
        ("quiz", "acc"): Score(0.5, 0.25, True, {0: True, 1: False, 2: False, 3: True}),
        ("text", "perplexity"): Score(14.5, None, False, None),
        ("text", "error"): Score(1.0, None, False, {0: True, 1: True}),
    }
    quiz, perplexity, error = compare(before, after)
    assert (quiz.base, quiz.student, quiz.lost, quiz.gained) == (0.75, 0.5, [1, 2], [3])
    assert (perplexity.lost, perplexity.gained) == (None, None)
    assert (error.lost, error.gained) == (None, None)  # yes is the worse answer
    console = Console(width=80, file=io.StringIO())
    console.print(table([quiz, perplexity, error], " after update 7"))
    lines = [line.replace("│", " ").split() for line in console.file.getvalue().splitlines()]
    assert ["Base", "and", "student", "after", "update", "7"] in lines
    assert ["quiz", "acc", "0.750", "0.500", "-0.250", "2", "1"] in lines
    assert ["text", "perplexity", "(less", "is", "12.000", "14.500", "+2.500"] in lines


def test_a_curve_keeps_all_students_in_one_file_whatever_the_order_of_the_calls(tmp_path: Path) -> None:
    for updates, share in ((12, 0.5), (4, 0.75), (12, 0.25)):
        before, after = ({("quiz", "acc"): Score(value, None, True, None)} for value in (1.0, share))
        _write_scalars(RunFolder(tmp_path), updates, compare(before, after))
    target = tmp_path / "tensorboard" / "benchmarks"
    (file,) = target.iterdir()
    events = EventAccumulator(str(file))
    events.Reload()
    curve = [(event.step, event.value) for event in events.Scalars("benchmarks/quiz/acc")]
    assert curve == [(0, 1.0), (4, 0.75), (12, 0.25)]  # TensorBoard would drop what stands before a step back


def write_config(folder: Path, lora: object) -> None:
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": {"policy": {**POLICY, "lora": lora}}}))


def test_a_runs_student_comes_with_the_base_as_the_run_held_it(tmp_path: Path) -> None:
    write_config(tmp_path, {"rank": 4, "alpha": 8})
    for updates in (0, 4, 12):
        (tmp_path / "checkpoints" / f"update-{updates:05d}").mkdir(parents=True)
    subject = find_subject(RunFolder(tmp_path), "last")
    assert (subject.updates_done, subject.student.name) == (12, "update-00012")
    assert (subject.policy.quantization, subject.policy.lora) == ("nf4", LoraSettings(rank=4, alpha=8))
    assert not subject.policy.gradient_checkpointing  # generation would go without its cache
    assert find_subject(RunFolder(tmp_path), "4").updates_done == 4
    with pytest.raises(ConfigError, match=r"--update 5: run_dir .* has students of updates \[0, 4, 12\]"):
        find_subject(RunFolder(tmp_path), "5")


def test_an_exported_folder_is_a_student_itself(tmp_path: Path) -> None:
    write_config(tmp_path, {"rank": 4})
    (tmp_path / "adapter_config.json").write_text("{}")
    subject = find_subject(RunFolder(tmp_path), "last")
    assert (subject.updates_done, subject.student) == (None, tmp_path)


@pytest.mark.parametrize("config", [None, "model: {}", "model: {policy: {lora: null, base: b, colour: red}}", "[", "3"])
def test_a_student_whose_base_nothing_describes_is_refused(config: str | None, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    if config is not None:
        (tmp_path / "config.yaml").write_text(config)
    with pytest.raises(ConfigError, match=r"config\.yaml must say how the base is held in memory"):
        find_subject(RunFolder(tmp_path), "last")


def test_without_the_extra_the_install_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"pip install 'resd-lightning\[forgetting\]'"):
        forgetting(str(tmp_path))


@pytest.mark.parametrize(
    ("option", "value"), [("limit", 0), ("num_fewshot", -1), ("max_gen_toks", 0), ("batch_size", 0)]
)
def test_options_out_of_range_are_refused_by_name(option: str, value: int) -> None:
    right = {"limit": None, "num_fewshot": None, "max_gen_toks": None, "batch_size": 1, "chat": True}
    with pytest.raises(ConfigError, match=f"--{option} must be at least"):
        HarnessSettings(**{**right, option: value})
