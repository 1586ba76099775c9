"""A toy task, a script that is looked up and never improvises, and a recorder of all that an update leaves behind."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.func import functional_call
from torch.optim import Optimizer

from resd_lightning.callbacks import (
    CacheSolutions,
    ConcisePlaybook,
    CuratePlaybook,
    ReflectOnFailures,
    SyncTeacher,
    TagSuccesses,
)
from resd_lightning.config import (
    ContextConfig,
    DistillationConfig,
    LoraSettings,
    OptimizerConfig,
    PolicyConfig,
    SamplingConfig,
    TeacherConfig,
    TeacherPromptConfig,
)
from resd_lightning.context.playbook import Playbook
from resd_lightning.datamodule import RolloutDataModule
from resd_lightning.module import ResdModule
from resd_lightning.policy.load import load_base
from resd_lightning.records import Example, Feedback, Message, MicroBatch, Split, UpdateRecord
from resd_lightning.rollout.scripted import ScriptedEngine
from resd_lightning.tasks.base import Task
from resd_lightning.thinking import strip_thinking
from resd_lightning.training import derived_arguments

ALGORITHM_1 = (ConcisePlaybook, ReflectOnFailures, TagSuccesses, CuratePlaybook, CacheSolutions, SyncTeacher)
LORA = LoraSettings(rank=2, alpha=4)

SECTION_STARTS = {
    "playbook": "Lessons learned",
    "solution": "For reference, a correct response",
    "reflection": "Key insight:",
}

Lines = Mapping[tuple[str, int, str], str | tuple[str, ...]]


class SumTask(Task):
    """Sums with one right answer each. A lone question mark fails without a word from the environment."""

    def __init__(self, answers: Mapping[str, int]) -> None:
        self.answers = answers

    def examples(self, split: Split) -> Sequence[Example]:
        answers = self.answers if split == "train" else {"v1": 2, "v2": 3}
        return [
            Example(id_, (Message(role="user", content=f"What is 1 + {answer - 1}?"),), str(answer))
            for id_, answer in answers.items()
        ]

    def verify(self, example: Example, response: str) -> Feedback:
        said = strip_thinking(response)
        if said == example.answer:
            return Feedback(1.0, (True,), "Right.")
        return Feedback(0.0, (False,), "" if said == "?" else f"{said} is wrong.")


class Script:
    """Answers by (purpose, update, example), one text or one per sample; a request it doesn't know ends the test.

    In validation, v1 is always answered rightly and v2 by its first sample only. Diagnostics are answered by
    `teachers_answer`, which draws from the global random streams as no answer should.
    """

    def __init__(self, lines: Lines) -> None:
        self.lines = lines
        self.asked: list[tuple[str, int, str, int]] = []

    def __call__(self, purpose: str, update: int, example_id: str, sample: int, messages: Sequence[Message]) -> str:
        if purpose == "validate":
            return {"v1": "2", "v2": "3" if sample == 0 else "4"}[example_id]
        if purpose == "diagnose":
            return teachers_answer(messages[-1]["content"])
        self.asked.append((purpose, update, example_id, sample))
        answer = self.lines[purpose, update, example_id]
        return answer if isinstance(answer, str) else answer[sample]


def teachers_answer(prompt: str) -> str:
    """Right behind a solution, and behind a reflection that stands beside a playbook."""
    torch.rand(3), random.random()
    shown = {name: start in prompt for name, start in SECTION_STARTS.items()}
    if shown["solution"] or (shown["reflection"] and shown["playbook"]):
        return str(1 + int(re.search(r"What is 1 \+ (\d+)\?", prompt)[1]))
    return "0"


@dataclass
class Moment:
    """One update, as its end left it."""

    record: UpdateRecord
    playbooks: Mapping[str, Playbook]
    solutions: Mapping[str, str]
    loss: float
    gradient_norm: float
    student_before: Mapping[str, Tensor]
    teacher_before: Mapping[str, Tensor]
    student_after: Mapping[str, Tensor]
    teacher_after: Mapping[str, Tensor]
    batches: Sequence[MicroBatch]
    student_has_gradient: bool
    teacher_has_gradient: bool

    @property
    def playbook(self) -> Playbook:
        """The run's one playbook."""
        return self.playbooks[""]

    @property
    def entries(self) -> list[tuple[str, int, int, int]]:
        """Each entry's id, helpful count, harmful count and last step."""
        return [(entry.id, entry.helpful, entry.harmful, entry.last_step) for entry in self.playbook.entries]

    @property
    def sections(self) -> list[str]:
        """Each rollout's teacher prompt by the initials of its sections: playbook, reflection, trial, feedback, ..."""
        return ["".join(sorted(name[0] for name in prompt.sections)) for prompt in self.record.teacher_prompts]

    @property
    def coefficients(self) -> list[float]:
        """The batches' coefficients, row by row, fillers left out."""
        return [c for batch in self.batches for c in batch.coefficients.tolist() if c > 0]

    def problems(self) -> dict[str, float]:
        """Everything malformed, by metric name."""
        return {name: count for name, count in self.record.metrics.items() if "/problem/" in name}


class Recorder(Callback):
    """Keeps a `Moment` per update; it stands behind SyncTeacher, so it sees the teacher after its step."""

    def __init__(self) -> None:
        self.moments: list[Moment] = []
        self._before: tuple[Mapping[str, Tensor], Mapping[str, Tensor]] = ({}, {})
        self._batches: list[MicroBatch] = []
        self._has_gradient = (False, False)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before = _weights(pl_module)
        self._batches = []

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: MicroBatch, batch_idx: int
    ) -> None:
        self._batches.append(batch)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        policy = pl_module.loaded_policy
        self._has_gradient = (
            all(weight.grad is not None for weight in policy.student_weights().values()),
            any(weight.grad is not None or weight.requires_grad for weight in policy.teacher_weights().values()),
        )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        state = pl_module.context.state_dict()
        self.moments.append(
            Moment(
                pl_module.data.record,
                pl_module.context.playbooks,
                state["solutions"],
                pl_module.step_metrics()["train/loss"],
                pl_module.step_metrics()["train/grad_norm"],
                *self._before,
                *_weights(pl_module),
                self._batches,
                *self._has_gradient,
            )
        )


def _weights(module: LightningModule) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    policy = module.loaded_policy
    student, teacher = policy.student_weights(), policy.teacher_weights()
    return ({n: w.detach().clone() for n, w in student.items()}, {n: w.detach().clone() for n, w in teacher.items()})


@dataclass(frozen=True)
class Toy:
    """A whole run on the tiny model; tests replace what they are about."""

    base: Path
    answers: Mapping[str, int]
    lines: Lines
    batch_size: int
    callbacks: Sequence[type[Callback]] = ALGORITHM_1
    observers: Sequence[Callback] = ()
    teacher: TeacherConfig = field(default_factory=lambda: TeacherConfig(ema_rate=0.25))
    distillation: DistillationConfig = field(default_factory=lambda: DistillationConfig(top_k=5, success_weights=True))
    context: ContextConfig = field(default_factory=lambda: ContextConfig(max_entries=4))
    teacher_prompt: TeacherPromptConfig = field(default_factory=TeacherPromptConfig)
    rollouts_per_prompt: int = 1
    max_batches: int | None = None
    max_prompt_tokens: int = 1024
    lora: LoraSettings = LORA
    options: Mapping[str, object] = field(default_factory=dict)
    """Further arguments of the module."""
    policy: Mapping[str, object] = field(default_factory=dict)
    """Further settings of the policy."""
    micro_batch_tokens: int | None = None

    def without(self, *removed: type[Callback], **changes: object) -> Toy:
        """Return the ablation: these lines of Algorithm 1 taken out."""
        kept = tuple(callback for callback in self.callbacks if callback not in removed)
        return replace(self, callbacks=kept, **changes)

    def policy_config(self) -> PolicyConfig:
        return PolicyConfig(str(self.base), dtype="float32", lora=self.lora, **self.policy)

    def run(self) -> Run:
        """Fit in this process on the CPU, K = 2."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # a model this small only loses time between threads
        try:
            return self._run()
        finally:
            torch.set_num_threads(threads)

    def _run(self) -> Run:
        torch.manual_seed(0)  # draws the adapters' A
        script = Script(self.lines)
        module = ResdModule(
            self.policy_config(),
            self.teacher,
            self.distillation,
            OptimizerConfig(learning_rate=0.02, warmup_updates=2),
            self.context,
            self.teacher_prompt,
            **self.options,
        )
        data = RolloutDataModule(
            SumTask(self.answers),
            ScriptedEngine(script),
            batch_size=self.batch_size,
            inner_updates=2,
            rollouts_per_prompt=self.rollouts_per_prompt,
            micro_batch_size=2,
            micro_batch_tokens=self.micro_batch_tokens,
            max_batches=self.max_batches,
            max_prompt_tokens=self.max_prompt_tokens,
            rollout=SamplingConfig(max_new_tokens=40),
            validation_samples=2,
        )
        recorder = Recorder()
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            gradient_clip_val=1.0,
            callbacks=[*(callback() for callback in self.callbacks), *self.observers, recorder],
            **derived_arguments(data.num_updates, data.inner_updates),
        )
        trainer.fit(module, data)
        return Run(self, recorder.moments, script.asked, module)


@dataclass(frozen=True)
class Run:
    """What a toy run came to."""

    toy: Toy
    moments: Sequence[Moment]
    asked: Sequence[tuple[str, int, str, int]]
    module: ResdModule = field(repr=False)

    def asked_for(self, purpose: str, update: int | None = None) -> list[str]:
        """Return the examples that were asked about, in order."""
        return [example for p, u, example, _ in self.asked if p == purpose and update in (None, u)]


_base = lru_cache(maxsize=1)(load_base)


def merged_logits(toy: Toy, adapter: Mapping[str, Tensor], ids: Sequence[int]) -> Tensor:
    """Return the logits (time, vocab) of the base with an adapter's update added into its weights by hand.

    No adapter layer takes part, and none of the package's views; gradients reach the adapter's tensors.
    """
    model = _base(toy.policy_config()).eval().requires_grad_(False)
    merged = {}
    for name, a in adapter.items():
        if name.endswith("lora_A.weight"):
            b = adapter[name.replace("lora_A", "lora_B")]
            target = name.removeprefix("base_model.model.").replace("lora_A.", "")
            merged[target] = model.get_parameter(target) + LORA.alpha / LORA.rank * b @ a
    assert 2 * len(merged) == len(adapter)
    return functional_call(model, merged, kwargs={"input_ids": torch.tensor([list(ids)])}).logits[0].double()
