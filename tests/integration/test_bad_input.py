"""Bad input ends in one sentence that names the key, with status 2, and before any weight is read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from jsonargparse import set_parsing_settings
from lightning.pytorch import Callback, LightningModule, Trainer

from resd_lightning import run_cli
from resd_lightning.callbacks import CuratePlaybook
from resd_lightning.cli import ResdCLI, main
from resd_lightning.config import LoraSettings
from resd_lightning.module import CHECKPOINT_FORMAT
from resd_lightning.policy import load
from resd_lightning.records import Example, Feedback, Message, Split
from resd_lightning.run_cli import SAMPLING_KEYS
from resd_lightning.tasks.base import Task

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


class SmallTask(Task):
    """A task that can be made wrong in every way the command line must notice."""

    def __init__(
        self, train_size: int = 4, val_size: int = 2, same_ids: bool = False, long_question: str = "", error: str = ""
    ) -> None:
        if train_size < 0:
            raise ValueError(f"train_size must be at least 0, got {train_size}")
        self.train_size = train_size
        self.val_size = val_size
        self.same_ids = same_ids
        self.long_question = long_question
        self.error = error

    def examples(self, split: Split) -> Sequence[Example]:
        if self.error == "file":
            raise FileNotFoundError("train_path: /data/rows.jsonl is not a file")
        if self.error == "bug":
            raise AttributeError("the task's author made a mistake")
        size = self.train_size if split == "train" else self.val_size
        ids = ["same" if self.same_ids else f"{split}-{i}" for i in range(size)]
        return [
            Example(id_, (Message(role="user", content="long " * 200 if id_ == self.long_question else "short"),), None)
            for id_ in ids
        ]

    def verify(self, example: Example, response: str) -> Feedback:
        return Feedback(0.0, (False,), "That is wrong.")


class RaisesLate(Callback):
    """A mistake of the program, not of its user, in the middle of training."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        raise ValueError("a bug at run time")


class CurateWithoutReflecting(CuratePlaybook):
    """Only its name differs: a user's own line of the algorithm follows the same rules."""


def options(base: Path, run_dir: Path, **changes: object) -> list[str]:
    """Return the options of a small run that is right, but for `changes` (`__` stands for a dot)."""
    right: dict[str, object] = {
        "run_dir": run_dir,
        "model.policy.base": base,
        "model.policy.dtype": "float32",
        "model.policy.lora.rank": 2,
        "data.task": "test_bad_input.SmallTask",
        "data.batch_size": 2,
        "data.inner_updates": 1,
        "data.validation_samples": 1,
        "data.max_prompt_tokens": 400,
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
    }
    for key in SAMPLING_KEYS:
        right[f"{key}.max_new_tokens"] = 4
    return [f"--{key}={value}" for key, value in (right | changes).items()]


def fit(base: Path, run_dir: Path, *more: str, method: Path = CONFIGS / "method" / "resd.yaml") -> list[str]:
    trainer = CONFIGS / "trainer" / "cpu.yaml"
    return ["fit", f"--config={method}", f"--config={trainer}", *options(base, run_dir), *more]


@pytest.fixture(autouse=True)
def own_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `main` does to the process ends with the test."""
    monkeypatch.setattr(sys, "argv", ["resd"])
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")


def run(command: Sequence[str]) -> int:
    """Run `resd` without what takes the parser most of its time: the other subcommands, and --help's sentences."""
    everything = ResdCLI.subcommands()
    with pytest.MonkeyPatch.context() as patch:
        set_parsing_settings(docstring_parse_attribute_docstrings=False)
        patch.setattr(run_cli, "set_parsing_settings", lambda **settings: None)
        if command[0] in everything:
            patch.setattr(ResdCLI, "subcommands", staticmethod(lambda: {command[0]: everything[command[0]]}))
        return main(command)


class Refusals:
    """Runs commands that must be refused."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, command: Sequence[str]) -> str:
        """Return what was said on standard error."""
        try:
            status: object = run(command)
        except SystemExit as stopped:  # the parser's own refusals
            status = stopped.code
        said = self._capsys.readouterr().err
        assert status == 2, said
        assert "Traceback" not in said
        return said


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refusals:
    """Returns what a refused command says; loading weights fails the test."""

    def load_base(config: object, *device: object) -> None:
        pytest.fail("weights were loaded before the refusal")

    monkeypatch.setattr(load, "load_base", load_base)
    return Refusals(capsys)


def method(folder: Path, *callbacks: str) -> Path:
    path = folder / "method.yaml"
    path.write_text("trainer:\n  callbacks:\n" + "".join(f"    - {name}\n" for name in callbacks))
    return path


@pytest.mark.parametrize(
    ("option", "said"),
    [
        # Not what the key takes
        ("--model.teacher.emma_rate=1", "unrecognized arguments: --model.teacher.emma_rate=1"),
        ("--data.task.init_args.train_sise=3", "'train_sise' is not accepted"),
        ("--data.batch_size=many", "\"data.batch_size\":\n  Expected a <class 'int'>. Got value: many"),
        (
            "--model.teacher.kind=master",
            "\"model.teacher.kind\":\n  Expected a typing.Literal['ema', 'live', 'initial',",
        ),
        ("--model.context.operations=[REMOVE]", "model.context.operations"),
        ("--data.task=nowhere.Task", '"data.task":\n\n  - Expected a path but nowhere.Task either not accessible'),
        ("--data.task=collections.OrderedDict", "collections.OrderedDict does not correspond to a subclass of Task"),
        ("--data.seed=3", 'Linked "data.seed" must be given via "seed_everything"'),
        ("--seed_everything=true", "--seed_everything must be a number"),
        # Out of range
        ("--model.distillation.alpha=1.5", "distillation.alpha must be in [0, 1], got 1.5"),
        ("--model.distillation.top_k=0", "distillation.top_k must be at least 1, or null for the whole vocabulary"),
        ("--model.distillation.top_k=260", "distillation.top_k must be at most the vocabulary's 259 tokens, got 260"),
        ("--model.distillation.clip_max=0.1", "distillation.clip_min must be at most distillation.clip_max, got 0.2"),
        ("--model.distillation.success_beta=-1", "model.distillation.success_beta must be at least 0, got -1.0"),
        ("--model.distillation.chunk_tokens=0", "model.distillation.chunk_tokens must be at least 1, got 0"),
        ("--model.teacher.ema_rate=2", "model.teacher.ema_rate must be in [0, 1], got 2.0"),
        ("--model.optimizer.learning_rate=0", "model.optimizer.learning_rate must be above 0, got 0.0"),
        ("--data.micro_batch_tokens=0", "data.micro_batch_tokens must be at least 1, got 0"),
        ("--model.optimizer.kind=adamw_8bit", "model.optimizer.kind must be adamw on cpu, got 'adamw_8bit'"),
        ("--model.optimizer.betas=[0.9,1]", "model.optimizer.betas must be two in [0, 1), got (0.9, 1.0)"),
        ("--model.policy.lora.rank=0", "resd: error: model.policy.lora.rank must be at least 1, got 0\n"),
        ("--model.context.max_entries=-1", "model.context.max_entries must be at least 0, got -1"),
        ("--model.context.operations=[]", "model.context.operations must be at least one operation, got ()"),
        ("--data.batch_size=0", "data.batch_size must be at least 1, got 0"),
        ("--data.verify_timeout_s=0", "data.verify_timeout_s must be above 0, got 0.0"),
        ("--data.rollout.temperature=-1", "data.rollout.temperature must be at least 0, got -1.0"),
        ("--model.context.curate.top_p=0", "model.context.curate.top_p must be in (0, 1], got 0.0"),
        # Contradictions
        ("--data.max_prompt_tokens=16381", "data.max_prompt_tokens + data.rollout.max_new_tokens is 16385 tokens"),
        ("--model.teacher_prompt.max_tokens=16381", "model.teacher_prompt.max_tokens + data.rollout.max_new_tokens is"),
        ("--model.context.max_prompt_tokens=16381", "model.context.max_prompt_tokens + the longest of its max_new_t"),
        # Files that aren't there
        ("--config=/nowhere/method.yaml", "\"config\": File does not exist: '/nowhere/method.yaml'"),
        ("--model.policy.base=/nowhere/model", "model.policy.base '/nowhere/model': there is no such folder"),
        ("--model.policy.chat_template=/nowhere.jinja", "model.policy.chat_template: no file at /nowhere.jinja"),
        ("--model.context.templates=/nowhere", "model.context.templates: no folder at /nowhere"),
        ("--ckpt_path=/nowhere/last.ckpt", "--ckpt_path /nowhere/last.ckpt: no file at /nowhere/last.ckpt"),
        # Tasks without what a run needs
        ("--data.task.init_args.train_size=-1", "train_size must be at least 0, got -1 (ValueError, test_bad_input.py"),
        ("--data.task.init_args.train_size=0", "data.task yields no training examples"),
        ("--data.task.init_args.train_size=1", "data.batch_size is 2, but data.task yields 1 training examples"),
        ("--data.task.init_args.val_size=0", "data.task yields no examples for the split 'val'"),
        ("--data.task.init_args.same_ids=true", "data.task yields two training examples with the id 'same'"),
        ("--data.task.init_args.error=file", "train_path: /data/rows.jsonl is not a file"),
        # Trainers that break an update apart
        ("--trainer.max_steps=3", "trainer.max_steps is 3, but an epoch is one whole policy update"),
        ("--trainer.min_steps=3", "trainer.min_steps is 3, but an epoch is one whole policy update"),
        ("--trainer.max_time=00:01:00:00", "trainer.max_time is '00:01:00:00', but an epoch is one whole policy"),
        ("--trainer.fast_dev_run=true", "trainer.fast_dev_run is True, but an epoch is one whole policy update"),
        ("--trainer.default_root_dir=elsewhere", "trainer.default_root_dir is the run's folder here: leave it out"),
        ("--trainer.limit_train_batches=2", "trainer.limit_train_batches is 2, but an epoch is one whole policy"),
        ("--trainer.limit_train_batches=1", "trainer.limit_train_batches is 1, but an epoch is one whole policy"),
        ("--trainer.limit_train_batches=0.5", "trainer.limit_train_batches is 0.5, but an epoch is one whole policy"),
        ("--trainer.overfit_batches=1", "trainer.overfit_batches is 1, but an epoch is one whole policy update"),
        ("--trainer.val_check_interval=1", "trainer.val_check_interval is 1, but an epoch is one whole policy"),
        ("--trainer.max_epochs=3", "trainer.max_epochs follows from data.batch_size, data.inner_updates and"),
        ("--trainer.check_val_every_n_epoch=3", "trainer.check_val_every_n_epoch follows from data.batch_size"),
        ("--trainer.accumulate_grad_batches=4", "trainer.accumulate_grad_batches follows from data.batch_size"),
        ("--trainer.devices=0", "trainer: "),
    ],
)
def test_a_bad_option_is_refused_by_name(
    option: str, said: str, tiny_base: Path, tmp_path: Path, refusal: Refusals
) -> None:
    told = refusal(fit(tiny_base, tmp_path / "run", option))
    assert said in told
    assert len(told.splitlines()) < 15, "the refusal is buried"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--model.distillation.top_k=null", "model.distillation.top_k null compares the whole vocabulary"),
        ("--model.teacher.kind=trust_region", "model.teacher.kind trust_region mixes whole logits"),
        ("--model.policy.lora=null", "model.policy.lora null trains the output head"),
    ],
)
def test_a_fused_loss_that_cannot_be_is_refused_by_name(
    option: str, said: str, tiny_base: Path, tmp_path: Path, refusal: Refusals
) -> None:
    told = refusal(fit(tiny_base, tmp_path / "run", "--model.distillation.loss=fused", option))
    assert f"model.distillation.loss fused can't be: {said}; set it to auto or plain" in told


def test_4_bits_without_adapters_are_refused(tiny_base: Path, tmp_path: Path, refusal: Refusals) -> None:
    full = ["--model.policy.lora=null", "--model.policy.quantization=nf4"]
    told = refusal(fit(tiny_base, tmp_path / "run", *full))
    assert "model.policy.quantization nf4 stores weights that cannot be trained: set model.policy.lora" in told


@pytest.mark.parametrize(
    ("callbacks", "said"),
    [
        (
            ["ReflectOnFailures", "ConcisePlaybook", "SyncTeacher"],
            "trainer.callbacks: ConcisePlaybook (Algorithm 1 line 6) must come before ReflectOnFailures (line 8)",
        ),
        (["SyncTeacher", "SyncTeacher"], "each line once; got ['SyncTeacher', 'SyncTeacher']"),
        (["CuratePlaybook", "SyncTeacher"], "trainer.callbacks: CuratePlaybook needs ReflectOnFailures before it"),
        (
            ["test_bad_input.CurateWithoutReflecting", "SyncTeacher"],
            "trainer.callbacks: CurateWithoutReflecting needs ReflectOnFailures before it",
        ),
        (["ReflectOnFailures"], "trainer.callbacks: model.teacher.kind ema needs SyncTeacher"),
        (["NoSuchCallback"], "NoSuchCallback"),
    ],
)
def test_callbacks_that_make_no_algorithm_are_refused(
    callbacks: list[str], said: str, tiny_base: Path, tmp_path: Path, refusal: Refusals
) -> None:
    told = refusal(fit(tiny_base, tmp_path / "run", method=method(tmp_path, *callbacks)))
    assert said in told
    assert "trainer.callbacks" in told


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data.rollouts_per_prompt=1"], "data.rollouts_per_prompt must be at least 2 under the objective grpo"),
        (["--data.rollout.temperature=0"], "data.rollout.temperature must be above 0 for groups that differ, got 0.0"),
        (["--trainer.callbacks+=SyncTeacher"], "model.objective grpo has no teacher and reads no context, so ['Sync"),
        (["--trainer.callbacks+=SwitchObjective"], "SwitchObjective goes over to grpo, which is model.objective"),
        (["--model.grpo.clip_low=2"], "model.grpo.clip_low must be in [0, 1], got 2.0"),
        (["--model.mixture_updates=0"], "model.mixture_updates must be at least 1, got 0"),
        (
            ["--model.grpo.kl_coefficient=0.1", "--model.policy.lora=null"],
            "model.grpo.kl_coefficient needs the initial weights, which full fine-tuning with a live teacher doesn't",
        ),
    ],
)
def test_what_contradicts_grpo_is_refused_by_name(
    options: list[str], said: str, tiny_base: Path, tmp_path: Path, refusal: Refusals
) -> None:
    grpo = CONFIGS / "method" / "grpo.yaml"
    assert said in refusal(fit(tiny_base, tmp_path / "run", *options, method=grpo))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("{success_rate: null}", "SwitchObjective needs success_rate or at_update, or it never switches"),
        ("{success_rate: 1.5}", "SwitchObjective's success_rate must be in (0, 1], got 1.5"),
        ("{window: 0}", "SwitchObjective's window must be at least 1, got 0"),
        ("{at_update: 0}", "SwitchObjective's at_update must be at least 1, got 0"),
        ("{rollouts_per_prompt: 1}", "SwitchObjective's rollouts_per_prompt must be at least 2 under the objective"),
        ("{objective: distillation}", "SwitchObjective goes over to distillation, which is model.objective already"),
        ("{objective: mixture}", "Expected a typing.Literal['grpo', 'distillation']"),
    ],
)
def test_a_switch_that_makes_no_sense_is_refused_by_name(
    arguments: str, said: str, tiny_base: Path, tmp_path: Path, refusal: Refusals
) -> None:
    switch = f"{{class_path: SwitchObjective, init_args: {arguments}}}"
    assert said in refusal(fit(tiny_base, tmp_path / "run", method=method(tmp_path, "SyncTeacher", switch)))


def test_an_observer_of_the_list_is_refused_by_its_argument(tiny_base: Path, tmp_path: Path, refusal: Refusals) -> None:
    watch = ("--trainer.callbacks+=MeasureForgetting", "--trainer.callbacks.every_updates=0")
    told = refusal(fit(tiny_base, tmp_path / "run", *watch))
    assert "MeasureForgetting.every_updates must be at least 1, got 0" in told


def test_a_base_without_a_chat_template_is_refused(tiny_base: Path, tmp_path: Path, refusal: Refusals) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    told = refusal(fit(base, tmp_path / "run"))
    assert f"model.policy.base '{base}' has no chat template" in told
    assert "model.policy.chat_template" in told


def test_a_base_whose_config_is_no_config_is_refused(tiny_base: Path, tmp_path: Path, refusal: Refusals) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    (base / "config.json").write_text("{")
    assert f"model.policy.base '{base}': the folder has no readable config" in refusal(fit(base, tmp_path / "run"))


@pytest.mark.parametrize(
    ("name", "template", "said"),
    [
        ("teacher", "{% if %}", "model.context.templates: teacher.jinja: Expected an expression"),
        ("reflect", "{{ trail }}", "model.context.templates: reflect.jinja: 'trail' is undefined"),
        ("curate", "{{ question.__class__.__mro__ }}", "model.context.templates: curate.jinja: access to attribute"),
    ],
)
def test_a_broken_template_is_refused_by_its_file(
    name: str, template: str, said: str, tiny_base: Path, tmp_path: Path, refusal: Refusals
) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / f"{name}.jinja").write_text(template)
    assert said in refusal(fit(tiny_base, tmp_path / "run", f"--model.context.templates={tmp_path / 'templates'}"))


def test_guided_json_without_xgrammar_is_refused(
    tiny_base: Path, tmp_path: Path, refusal: Refusals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "xgrammar", None)
    told = refusal(fit(tiny_base, tmp_path / "run", "--model.context.guided_json=true"))
    assert "model.context.guided_json needs the extra `guided`" in told


# Checkpoints


def write_checkpoint(path: Path, **changes: object) -> Path:
    """Write what a run of the tiny base leaves, as far as it is read before the weights."""
    settings = {
        "model.policy.base": "llama 2x32 vocab 259",
        "model.policy.lora.rank": 2,
        "model.policy.lora.alpha": LoraSettings().alpha,
        "model.policy.lora.target_modules": "all-linear",
        "model.teacher.kind": "ema",
        "model.optimizer.kind": "adamw",
        "model.context.scope": "global",
        "data.batch_size": 2,
        "data.inner_updates": 1,
    }
    state = {"format": changes.pop("format", CHECKPOINT_FORMAT), "updates": 1, "settings": settings | changes}
    torch.save({"resd": state, "config": {}}, path)
    return path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.policy.lora.rank": 8}, "was saved with model.policy.lora.rank = 8, but this run has 2"),
        ({"model.policy.lora.rank": None}, "was saved with model.policy.lora.rank = None, but this run has 2"),
        ({"model.teacher.kind": "live"}, "was saved with model.teacher.kind = live, but this run has ema"),
        ({"model.policy.base": "llama 4x64"}, "was saved with model.policy.base = llama 4x64, but this run has"),
        ({"model.context.scope": "example"}, "was saved with model.context.scope = example, but this run has global"),
        ({"data.batch_size": 5}, "was saved with data.batch_size = 5, but this run has"),
        ({"format": 999}, "has format 999, and this version reads"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_the_key_that_differs(
    changes: dict[str, object], said: str, tiny_base: Path, tmp_path: Path, refusal: Refusals
) -> None:
    path = write_checkpoint(tmp_path / "other.ckpt", **changes)
    told = refusal(fit(tiny_base, tmp_path / "run", f"--ckpt_path={path}"))
    assert f"--ckpt_path {path} {said}" in told


def test_the_checkpoint_that_those_differ_from_is_accepted(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class WeightsAreRead(Exception):
        pass

    def load_base(config: object, *device: object) -> None:
        raise WeightsAreRead

    monkeypatch.setattr(load, "load_base", load_base)
    path = write_checkpoint(tmp_path / "mine.ckpt")
    with pytest.raises(WeightsAreRead):
        run(fit(tiny_base, tmp_path / "run", f"--ckpt_path={path}"))


@pytest.mark.parametrize("subcommand", ["fit", "validate", "test", "predict"])
def test_last_without_a_run_is_refused_with_the_folder_that_holds_none(
    subcommand: str, tiny_base: Path, tmp_path: Path, refusal: Refusals
) -> None:
    _, *command = fit(tiny_base, tmp_path / "run", "--ckpt_path=last")
    told = refusal([subcommand, *command])
    assert f"--ckpt_path last: no file at {tmp_path}/run/checkpoints/last.ckpt" in told
    assert f"--run_dir {tmp_path}/run holds no run" in told


def test_a_file_that_is_no_checkpoint_of_ours_is_refused(tiny_base: Path, tmp_path: Path, refusal: Refusals) -> None:
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    (tmp_path / "empty.ckpt").write_text("")
    torch.save([1, 2, 3], tmp_path / "list.ckpt")
    torch.save({"state_dict": {"w": torch.ones(2)}, "epoch": 3}, tmp_path / "lightning.ckpt")
    torch.save({"resd": 5}, tmp_path / "number.ckpt")
    torch.save(SmallTask(), tmp_path / "pickle.ckpt")
    whole = write_checkpoint(tmp_path / "whole.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    reasons = {
        "text": "is not a checkpoint",
        "empty": "is not a checkpoint",
        "cut": "is not a checkpoint",
        "pickle": "is not a readable checkpoint",
        "list": "was not written by `resd fit`",
        "lightning": "was not written by `resd fit`",
        "number": "was not written by `resd fit`",
    }
    for name, reason in reasons.items():
        path = tmp_path / f"{name}.ckpt"
        assert f"--ckpt_path {path} {reason}" in refusal(fit(tiny_base, tmp_path / "run", f"--ckpt_path={path}"))


def test_a_refusal_costs_no_earlier_run_even_where_it_may_be_overwritten(
    tiny_base: Path, tmp_path: Path, refusal: Refusals
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"update": 1}\n')
    refusal(fit(tiny_base, tmp_path / "run", "--overwrite=true", "--model.distillation.top_k=260"))
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == '{"update": 1}\n'


def test_a_folder_that_holds_a_run_is_not_overwritten_unasked(
    tiny_base: Path, tmp_path: Path, refusal: Refusals
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"update": 1}\n')
    told = refusal(fit(tiny_base, tmp_path / "run"))
    assert f"--run_dir {tmp_path}/run holds a run already" in told
    assert "--ckpt_path last" in told
    assert "--overwrite true" in told
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["metrics.jsonl"]


# The other commands


def test_tools_refuse_a_folder_without_a_run(tmp_path: Path, refusal: Refusals) -> None:
    assert "run_dir" in refusal(["export", str(tmp_path / "run"), str(tmp_path / "out")])
    assert "run_dir" in refusal(["show", str(tmp_path / "run")])
    assert "required: run_dir" in refusal(["export"])
    assert not (tmp_path / "out").exists()


def test_a_command_that_does_not_exist_is_refused(refusal: Refusals) -> None:
    assert "there is no command train" in refusal(["train"])


def test_what_a_run_cannot_do_without_is_asked_for(tiny_base: Path, refusal: Refusals) -> None:
    assert "fit.data.task" in refusal(["fit", f"--model.policy.base={tiny_base}"])
    assert "fit.model.policy.base" in refusal(["fit", "--data.task=test_bad_input.SmallTask"])


def test_the_installed_program_refuses_in_the_same_way(tiny_base: Path, tmp_path: Path) -> None:
    refusals = {
        "--model.distillation.alpha=2": "resd: error: model.distillation.alpha must be in [0, 1], got 2.0",
        "--model.teacher.kynd=ema": "error: unrecognized arguments: --model.teacher.kynd=ema",
    }
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-m", "resd_lightning"]
    running = {
        said: subprocess.Popen(
            [*program, *fit(tiny_base, tmp_path / "run", option)], stderr=subprocess.PIPE, text=True, env=environment
        )
        for option, said in refusals.items()
    }
    for said, process in running.items():
        _, told = process.communicate(timeout=200)
        assert process.returncode == 2, told
        assert said in told
        assert "Traceback" not in told
        assert "Loading weights" not in told


# What is no refusal


def test_a_mistake_in_a_tasks_program_keeps_its_traceback(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(AttributeError, match="the task's author made a mistake"):
        run(fit(tiny_base, tmp_path / "run", "--data.task.init_args.error=bug"))


def test_an_error_at_run_time_is_not_mistaken_for_bad_input(tiny_base: Path, tmp_path: Path) -> None:
    late = method(tmp_path, "SyncTeacher", "test_bad_input.RaisesLate")
    with pytest.raises(ValueError, match="a bug at run time"):
        run(fit(tiny_base, tmp_path / "run", method=late))


def test_a_prompt_that_is_too_long_is_skipped_and_counted_and_the_run_goes_on(tiny_base: Path, tmp_path: Path) -> None:
    long_question = "--data.task.init_args.long_question=train-1"  # of the first of two batches
    assert run(fit(tiny_base, tmp_path / "run", long_question)) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["rollout/skipped"] for line in lines if "rollout/skipped" in line] == [1.0, 0.0]
    transcripts = (tmp_path / "run" / "transcripts.jsonl").read_text().splitlines()
    assert [json.loads(line)["example"] for line in transcripts] == ["train-0", "train-2", "train-3"]
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    assert checkpoint["state_dict"] == {}  # nothing of the frozen base
    assert checkpoint["resd"]["policy"].keys() == {"student", "teacher"}


def test_a_batch_of_prompts_that_are_all_too_long_is_an_update_without_a_loss(tiny_base: Path, tmp_path: Path) -> None:
    assert run(fit(tiny_base, tmp_path / "run", "--data.max_prompt_tokens=5", "--data.max_batches=1")) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (update,) = [line for line in lines if "rollout/skipped" in line]
    assert (update["rollout/skipped"], update["train/loss"]) == (2.0, 0.0)


# Resuming


def lines_of(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_options_given_when_resuming_win_over_the_checkpoints(tiny_base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    warm = "--model.optimizer.warmup_updates=0"
    assert run(fit(tiny_base, folder, warm, "--model.optimizer.learning_rate=0.01", "--data.max_batches=1")) == 0
    resumed = fit(tiny_base, folder, warm, "--ckpt_path=last", "--model.optimizer.learning_rate=0.002")
    assert run([*resumed, "--model.optimizer.weight_decay=0.5"]) == 0
    rates = [line["train/learning_rate"] for line in lines_of(folder) if "train/learning_rate" in line]
    assert rates == [0.01, 0.002]
    groups = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.5]


def test_a_runs_config_leaves_out_what_belongs_to_one_call(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert run(fit(tiny_base, folder, "--overwrite=true")) == 0
    assert "overwrite" not in (folder / "config.yaml").read_text()
    assert run(["fit", f"--config={folder / 'config.yaml'}"]) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert len(lines_of(folder)) > 2


def test_a_failed_resume_leaves_the_runs_config_alone(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert run(fit(tiny_base, folder)) == 0
    before = (folder / "config.yaml").read_text()
    assert run(fit(tiny_base, folder, "--ckpt_path=last", "--model.context.scope=example")) == 2
    assert "was saved with model.context.scope = global, but this run has example" in capsys.readouterr().err
    assert (folder / "config.yaml").read_text() == before


def test_another_runs_checkpoint_does_not_overwrite_this_run(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "other"):
        assert run(fit(tiny_base, tmp_path / name, "--data.max_batches=1")) == 0
    foreign = tmp_path / "other" / "checkpoints" / "last.ckpt"
    assert run(fit(tiny_base, tmp_path / "one", f"--ckpt_path={foreign}")) == 2
    assert "holds a run already" in capsys.readouterr().err
