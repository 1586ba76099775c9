"""The LightningModule: what a step reads (policy and context), one training step, and what a checkpoint holds."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, TypedDict, cast

import torch
from bitsandbytes.optim import AdamW8bit
from jaxtyping import Float
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedTokenizerBase

from resd_lightning.config import (
    ConfigError,
    ContextConfig,
    DistillationConfig,
    GrpoConfig,
    ObjectiveName,
    OptimizerConfig,
    PolicyConfig,
    TeacherConfig,
    TeacherPromptConfig,
    require,
)
from resd_lightning.context.files import read_initial_playbook
from resd_lightning.context.prompts import PromptTemplates, Sections
from resd_lightning.context.store import ContextStore
from resd_lightning.context.teacher_prompt import build_teacher_prompt, choose_sections, choose_solution, plain_prompt
from resd_lightning.metrics import BestAtK, MeanAtK
from resd_lightning.objectives.distillation import DistillationObjective
from resd_lightning.objectives.fused_or_plain import check_fused
from resd_lightning.objectives.grpo import GrpoObjective
from resd_lightning.objectives.mixture import MixtureObjective
from resd_lightning.objectives.objective import Objective
from resd_lightning.policy.load import BaseFacts, check_quantization, load_policy, load_tokenizer, read_base_facts
from resd_lightning.policy.offload import activations_on_cpu
from resd_lightning.policy.shard import whole
from resd_lightning.policy.views import Policy
from resd_lightning.records import (
    ExampleBatch,
    MicroBatch,
    Purpose,
    Rollout,
    RolloutBatch,
    TeacherPrompt,
    UpdateRecord,
)
from resd_lightning.rollout.across_ranks import in_turn
from resd_lightning.rollout.chat import encode_prompt
from resd_lightning.training import check_strategy, wrap_trained_alone

if TYPE_CHECKING:
    from resd_lightning.datamodule import RolloutDataModule

logger = logging.getLogger(__name__)

CHECKPOINT_FORMAT = 1


class OptimizerState(TypedDict):
    """What an optimizer's `state_dict` holds: each weight's moments by its number, and the groups' settings."""

    state: dict[int, dict[str, object]]
    param_groups: list[dict[str, object]]


class ResdModule(LightningModule):
    """Student, teacher and context, and the loss between them (RESD Alg. 1 lines 14 to 18).

    Args:
        policy: The language model and how it is held in memory.
        teacher: Whose weights score the student's tokens.
        distillation: The loss.
        optimizer: AdamW and its warm-up.
        context: Playbook, solution buffer, and who writes them.
        teacher_prompt: What the teacher is told.
        method: Name of the method, for the run folder and comparisons.
        objective: What updates minimise: distillation, GRPO, or a mixture of both that comes to be GRPO alone.
        grpo: The policy gradient.
        mixture_updates: Under the mixture, updates over which the weight of distillation falls linearly from 1 to 0.

    Raises:
        ConfigError: Settings contradict each other.
    """

    def __init__(
        self,
        policy: PolicyConfig,
        teacher: TeacherConfig = TeacherConfig(),  # noqa: B008  # frozen
        distillation: DistillationConfig = DistillationConfig(),  # noqa: B008
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008
        context: ContextConfig = ContextConfig(),  # noqa: B008
        teacher_prompt: TeacherPromptConfig = TeacherPromptConfig(),  # noqa: B008
        method: str = "resd",
        objective: ObjectiveName = "distillation",
        grpo: GrpoConfig = GrpoConfig(),  # noqa: B008
        mixture_updates: int = 32,
    ) -> None:
        super().__init__()
        require(mixture_updates >= 1, "model.mixture_updates", "at least 1", mixture_updates)
        if grpo.kl_coefficient > 0 and policy.lora is None and teacher.kind in ("ema", "live"):
            raise ConfigError(
                f"model.grpo.kl_coefficient needs the initial weights, which full fine-tuning with a {teacher.kind} "
                "teacher doesn't keep: set model.teacher.kind initial, or model.policy.lora"
            )
        if context.author == "base" and policy.lora is None and teacher.kind in ("ema", "live"):
            raise ConfigError(
                f"model.context.author base needs the untrained weights, which full fine-tuning with a {teacher.kind} "
                "teacher doesn't keep: set model.policy.lora, or another author"
            )
        self.method = method
        self.policy_config = policy
        self.teacher_config = teacher
        self.distillation_config = distillation
        self.optimizer_config = optimizer
        self.context_config = context
        self.teacher_prompt_config = teacher_prompt
        self.objective_name = objective
        self._distillation = DistillationObjective(distillation)
        self._grpo_config = grpo
        self._mixture_updates = mixture_updates
        self.templates = PromptTemplates(context.templates, context.operations)
        self.context = ContextStore(context.scope, read_initial_playbook(context))
        self.strict_loading = False  # a checkpoint leaves the frozen base out
        self.policy: Policy | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._facts: BaseFacts | None = None
        self._restored_updates = 0
        self._loss_sum: Float[Tensor, ""] = torch.zeros(())
        self._step_metrics: dict[str, float] = {}
        self._batch_started_s = 0.0
        self._skipped_prompts = 0
        self.observed: dict[str, float] = {}
        """What observers add to the numbers of the evaluation in progress."""
        self.scores = nn.ModuleDict(
            {
                "per_task/mean_at_k": MeanAtK(),
                "per_task/best_at_k": BestAtK(),
                "per_test/mean_at_k": MeanAtK(),
                "per_test/best_at_k": BestAtK(),
            }
        )

    # Set-up: everything that can be refused is refused in `setup`, before `configure_model` reads weights

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base's tokenizer, read on first use."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.policy_config)
        return self._tokenizer

    @property
    def facts(self) -> BaseFacts:
        """The base's sizes, read from its config file on first use."""
        if self._facts is None:
            self._facts = read_base_facts(self.policy_config)
        return self._facts

    def setup(self, stage: str) -> None:
        """Check the settings against the base's small files.

        Raises:
            ConfigError: See `load_tokenizer`, `check_settings`, `check_strategy`; or an optimizer not for the device.
        """
        self.check_settings()
        num_processes = self.trainer.num_devices * self.trainer.num_nodes
        strategy, precision = self.trainer.strategy, str(self.trainer.precision)
        check_strategy(strategy, num_processes, precision, self.policy_config, self.optimizer_config)
        kind, device = self.optimizer_config.kind, strategy.root_device.type
        if stage == "fit":
            require(kind == "adamw" or device == "cuda", "model.optimizer.kind", f"adamw on {device}", kind)
        _ = self.tokenizer

    def check_settings(self) -> None:
        """Check the settings against the base's config file alone.

        Raises:
            ConfigError: See `read_base_facts`, `check_quantization`, `check_fused`; or `model.distillation.top_k` is
                above the vocabulary.
        """
        self._distillation.check_vocabulary(self.facts.vocab_size)
        check_quantization(self.policy_config)
        check_fused(self.distillation_config, self.teacher_config, self.policy_config, self.facts)

    def configure_model(self) -> None:
        """Load the base and put student and teacher on it, once.

        Raises:
            ConfigError: An earlier trainer's strategy holds the weights in a way that this one's can't.
        """
        if self.policy is None:
            self.policy = self._load()
        strategy = self.trainer.strategy
        if self.policy.is_sharded != isinstance(strategy, ModelParallelStrategy):
            raise ConfigError(
                f"trainer.strategy {type(strategy).__name__} can't hold a module that another trainer's has "
                f"{'cut up' if self.policy.is_sharded else 'left whole'}: make a new module, and give the trainer the "
                "checkpoint"
            )
        if isinstance(strategy, FSDPStrategy):
            wrap_trained_alone(strategy, self.policy.model, is_fit=self.trainer.state.fn == "fit")
        self.policy.precision_context = self.trainer.precision_plugin.forward_context

    def _load(self) -> Policy:
        """Return the policy with this rank's share of the weights: all of them, but under FSDP2."""
        strategy = self.trainer.strategy
        arguments = (self.policy_config, self.teacher_config, self.tokenizer, strategy.root_device)
        if not isinstance(strategy, ModelParallelStrategy):
            return load_policy(*arguments)
        with in_turn("loading"):  # each rank reads the whole base: all at once they would fill the host's memory
            policy = load_policy(*arguments)
            policy.shard(strategy.device_mesh["data_parallel"])
        return policy

    @property
    def loaded_policy(self) -> Policy:
        """The policy.

        Raises:
            RuntimeError: It is not loaded yet; Lightning loads it in `configure_model`.
        """
        if self.policy is None:
            raise RuntimeError("the policy is loaded in configure_model, which has not run yet")
        return self.policy

    @property
    def data(self) -> RolloutDataModule:
        """The trainer's datamodule, which generates and verifies for this module."""
        return cast("RolloutDataModule", self.trainer.datamodule)  # type: ignore[attr-defined]

    @property
    def updates_done(self) -> int:
        """Policy updates behind the current weights; a restored module remembers its checkpoint's."""
        is_fitting = self._trainer is not None and self.trainer.state.fn == "fit"
        return self.trainer.global_step if is_fitting else self._restored_updates

    # One update

    @property
    def objective(self) -> Objective[MicroBatch]:
        """What the current update minimises."""
        name = self.data.phase.objective
        if name == "mixture":
            weight = max(0.0, 1 - self.trainer.current_epoch / self._mixture_updates)
            return MixtureObjective(self._distillation, self._grpo, weight)
        # Each is given its own kind of batch: those of an update come from the objective that reads them.
        return cast("Objective[MicroBatch]", self._distillation if name == "distillation" else self._grpo)

    @cached_property
    def _grpo(self) -> GrpoObjective:
        return GrpoObjective(self._grpo_config, self.data.rollout.temperature)

    def build_teacher_prompts(self, record: UpdateRecord) -> list[TeacherPrompt]:
        """Return one prompt per rollout from the context as it stands (RESD Alg. 1 lines 14 and 15).

        All are plain where the update's objective has no teacher.
        """
        if not self.objective.uses_teacher:
            return [plain_prompt(rollout) for rollout in record.rollouts]
        return [self._teacher_prompt(rollout, record) for rollout in record.rollouts]

    def _teacher_prompt(self, rollout: Rollout, record: UpdateRecord) -> TeacherPrompt:
        return build_teacher_prompt(
            rollout,
            self.teacher_sections(rollout, record),
            self.templates,
            lambda messages: encode_prompt(self.tokenizer, messages),
            self.teacher_prompt_config.max_tokens,
        )

    def teacher_sections(self, rollout: Rollout, record: UpdateRecord) -> Sections:
        """Return what the teacher may be told about a rollout, before it is fitted to the prompt's limit."""
        config = self.teacher_prompt_config
        example_id = rollout.example.id
        peers = record.with_example(example_id)
        solution = choose_solution(rollout, peers, self.context.solution(example_id), config)
        return choose_sections(rollout, self.context.playbook(example_id).entries, solution, config)

    def on_fit_start(self) -> None:
        """Choose how the distillation loss is computed, before anything is sampled."""
        self._distillation.prepare(self.loaded_policy)
        self._distillation.weighs_by_engine(self.data.engine.is_apart, self.data.rollout.temperature)

    def on_train_epoch_start(self) -> None:
        """Start the update's loss at zero."""
        self.objective.begin_update()
        self._loss_sum = torch.zeros((), device=self.device)

    def training_step(self, batch: MicroBatch, batch_idx: int) -> dict[str, Tensor]:
        """Return this micro-batch's part of the loss, and for observers what it was made of, per token.

        The loss is scaled against what Lightning and DDP average away: Lightning divides by `accumulate_grad_batches`
        and the gradient all-reduce by the world size; the parts of an update are meant to add up.
        """
        # Among several ranks a filler runs as any batch does: others may wait for its forward.
        is_nothing = batch.is_filler and self.trainer.world_size == 1 and not self.loaded_policy.is_sharded
        objective = self.objective
        with self._offloading():
            loss = self.loaded_policy.zero() if is_nothing else objective.loss(self.loaded_policy, batch)
        self._loss_sum += loss.detach()
        scale = self.trainer.accumulate_grad_batches * self.trainer.world_size
        return {"loss": loss * scale, **objective.take_token_facts()}

    def _offloading(self) -> AbstractContextManager[object]:
        if not self.policy_config.offload_activations:
            return nullcontext()
        return activations_on_cpu(self.loaded_policy.model.parameters())

    def on_train_batch_start(self, batch: MicroBatch, batch_idx: int) -> None:
        """Start the clock of the update's gradient part."""
        self._batch_started_s = time.perf_counter()

    def on_train_batch_end(self, outputs: object, batch: MicroBatch, batch_idx: int) -> None:
        """Book the micro-batch's time, the optimizer's step included."""
        self.data.costs.add_time("train", time.perf_counter() - self._batch_started_s)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Note the rate of this step and the gradient's norm before clipping; all micro-batches are through."""
        self.objective.end_update()
        weights = [weight for group in optimizer.param_groups for weight in group["params"] if weight.grad is not None]
        self._step_metrics = {
            "train/grad_norm": float(whole(torch.nn.utils.get_total_norm([weight.grad for weight in weights]))),
            "train/learning_rate": float(optimizer.param_groups[0]["lr"]),
        }

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the trainer says; under FSDP1 the outermost unit clips norms, which Lightning leaves to its users."""
        outermost = self.trainer.strategy.model
        if isinstance(outermost, FullyShardedDataParallel) and gradient_clip_val and gradient_clip_algorithm != "value":
            outermost.clip_grad_norm_(gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def step_metrics(self) -> dict[str, float]:
        """Return the finished update's loss and the objective's own sums, over all ranks, gradient norm and rate."""
        sums = {"train/loss": self._loss_sum, **self.objective.sums()}
        reduced = {name: float(self.trainer.strategy.reduce(part, reduce_op="sum")) for name, part in sums.items()}
        return {**reduced, **self._step_metrics}

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return AdamW on the student's weights with a linear warm-up, then a constant rate.

        Torch's own is not the fused one: Lightning doesn't clip gradients for it under mixed precision.
        """
        config = self.optimizer_config
        kind: type[AdamW] = AdamW8bit if config.kind == "adamw_8bit" else AdamW
        optimizer = kind(
            [weight for weight in self.loaded_policy.student_weights().values() if weight.requires_grad],
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
        )
        scheduler = LambdaLR(optimizer, self._warmup_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _warmup_factor(self, update: int) -> float:
        warmup = self.optimizer_config.warmup_updates
        return min(1.0, (update + 1) / warmup) if warmup > 0 else 1.0

    # Evaluation

    def validation_step(self, batch: ExampleBatch, batch_idx: int) -> dict[str, list[Rollout]]:
        """Sample several responses per prompt and score them, per task and per test case; observers get the rollouts.

        A prompt longer than its limit has no responses: it is left out of the means and counted.
        """
        rollouts = self.data.roll_out(batch.examples, self.updates_done, Purpose.VALIDATE)
        for example in batch.examples:
            own = [rollout for rollout in rollouts if rollout.example.id == example.id]
            if not own:
                self._skipped_prompts += 1
                continue
            task = torch.tensor([[float(rollout.is_success) for rollout in own]], device=self.device)
            test = torch.tensor([[rollout.feedback.share_passed for rollout in own]], device=self.device)
            for metric, scores in zip(self._score_metrics().values(), (task, task, test, test), strict=True):
                metric.update(scores)
        return {"rollouts": rollouts}

    test_step = validation_step

    def _score_metrics(self) -> dict[str, MeanAtK | BestAtK]:
        return cast("dict[str, MeanAtK | BestAtK]", dict(self.scores.items()))

    def evaluation_metrics(self) -> dict[str, float]:
        """Return this validation's or test's numbers over all ranks, and start the next from zero."""
        prefix, k = ("test" if self.trainer.testing else "val"), self.data.validation_samples
        values = {
            f"{prefix}/{name.replace('_at_k', f'@{k}')}": float(metric.compute())
            for name, metric in self._score_metrics().items()
            if metric.update_called  # not where every prompt was too long
        }
        values[f"{prefix}/skipped"] = float(self._skipped_prompts)
        values |= self.observed
        self._skipped_prompts, self.observed = 0, {}
        for metric in self._score_metrics().values():
            metric.reset()
        return values

    def predict_step(self, batch: ExampleBatch, batch_idx: int) -> RolloutBatch:
        """Return the student's completions with the environment's verdicts."""
        return RolloutBatch(self.data.roll_out(batch.examples, self.updates_done, Purpose.PREDICT))

    # Checkpoints: what training changes, and nothing of the frozen base

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Put student, teacher, context and counter into the checkpoint; all ranks make it, and one writes it."""
        optimizer_states = cast("list[OptimizerState]", checkpoint.get("optimizer_states", []))
        if optimizer_states and not self.loaded_policy.is_sharded:
            if self.trainer.is_global_zero and self.optimizer_config.kind == "adamw":
                _fill_with_zeros(optimizer_states, self.trainer.optimizers)
            _number_like_sharded(optimizer_states, self, self.trainer.optimizers)
        elif optimizer_states and self.trainer.global_step == 0:
            _start_counting_at_zero(optimizer_states, self.trainer.optimizers)
        checkpoint["resd"] = {
            "format": CHECKPOINT_FORMAT,
            "updates": self.trainer.global_step,
            "base": self.facts.architecture,
            "settings": self.settings_of_state(self.data),
            "policy": self.loaded_policy.state(),
            "context": self.context.state_dict(),
        }

    def state_dict(self, *args: object, **kwargs: object) -> dict[str, object]:  # type: ignore[override]
        """Return nothing: `on_save_checkpoint` keeps what training changes, and the base is in no checkpoint.

        Strategies ask for it with every checkpoint; a sharded base would be gathered each time, for nothing.
        """
        return {}

    def settings_of_state(self, data: RolloutDataModule) -> dict[str, object]:
        """Return the settings that a checkpoint's state only fits with, by key."""
        lora = self.policy_config.lora
        return {
            "model.policy.base": self.facts.architecture,
            "model.policy.lora.rank": None if lora is None else lora.rank,
            "model.policy.lora.alpha": None if lora is None else lora.alpha,
            "model.policy.lora.target_modules": None if lora is None else lora.target_modules,
            "model.teacher.kind": self.teacher_config.kind,
            "model.optimizer.kind": self.optimizer_config.kind,
            "model.context.scope": self.context_config.scope,
            "data.batch_size": data.batch_size,
            "data.inner_updates": data.inner_updates,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Restore what `on_save_checkpoint` kept."""
        state = cast("dict[str, object]", checkpoint["resd"])
        self._restored_updates = cast("int", state["updates"])
        self.loaded_policy.load_state(cast("dict[str, dict[str, Tensor]]", state["policy"]))
        self.context.load_state_dict(cast("dict[str, object]", state["context"]))

    def on_train_start(self) -> None:
        """Let this run's optimizer settings win over those of the checkpoint it goes on from, moments untouched."""
        config = self.optimizer_config
        for scheduled in self.trainer.lr_scheduler_configs:
            scheduler = cast("LambdaLR", scheduled.scheduler)
            rate = config.learning_rate * self._warmup_factor(scheduler.last_epoch)
            scheduler.base_lrs, scheduler._last_lr = [config.learning_rate], [rate]
            for group in scheduler.optimizer.param_groups:
                group |= {"lr": rate, "initial_lr": config.learning_rate}
                group |= {"weight_decay": config.weight_decay, "betas": config.betas}


def _number_like_sharded(states: Sequence[OptimizerState], module: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Number the weights in optimizers' states by their place among all of the module's, as a sharded run does.

    Torch numbers those that are trained, which a sharded run would take for others when it resumes from the state. A
    run that isn't sharded reads them in order, by whatever numbers.
    """
    places: dict[Tensor, int] = {weight: place for place, weight in enumerate(module.parameters())}
    for state, optimizer in zip(states, optimizers, strict=True):
        numbers = {old: places[weight] for old, weight in _weights_by_number(state, optimizer).items()}
        state["state"] = {numbers[old]: moments for old, moments in state["state"].items()}
        for saved in state["param_groups"]:
            saved["params"] = [numbers[old] for old in cast("list[int]", saved["params"])]


def _fill_with_zeros(states: Sequence[OptimizerState], optimizers: Sequence[Optimizer]) -> None:
    """Give saved states of AdamW the moments that it begins with, for weights that it hasn't moved.

    Before the first step these are all of them, and Lightning's FSDPs can't load a state without any.
    """
    for state, optimizer in zip(states, optimizers, strict=True):
        for number, weight in _weights_by_number(state, optimizer).items():
            if number not in state["state"]:
                moments = {name: torch.zeros_like(weight, device="cpu") for name in ("exp_avg", "exp_avg_sq")}
                state["state"][number] = {"step": torch.zeros(()), **moments}


def _weights_by_number(state: OptimizerState, optimizer: Optimizer) -> dict[int, Tensor]:
    """Return an optimizer's weights by the numbers that they have in a state saved of it."""
    return {
        number: weight
        for saved, group in zip(state["param_groups"], optimizer.param_groups, strict=True)
        for number, weight in zip(cast("list[int]", saved["params"]), group["params"], strict=True)
    }


def _start_counting_at_zero(states: Sequence[OptimizerState], optimizers: Sequence[Optimizer]) -> None:
    """Set the steps that optimizers have counted back to none, in saved states and in their own.

    Torch has no state of a sharded optimizer before its first step, and makes one by a step that changes nothing but
    the count, which corrects the bias of the moments.
    """
    saved = [moments for state in states if state for moments in state["state"].values()]  # one rank alone has them
    own = [moments for optimizer in optimizers for moments in optimizer.state.values()]
    for moments in (*saved, *own):
        cast("Tensor", moments["step"]).zero_()
