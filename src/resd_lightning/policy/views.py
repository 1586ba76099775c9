"""One model seen three ways: the student that is trained, the teacher that scores it, the base both stand on.

With LoRA the three share the base weights: `student` and `teacher` are two adapters, `base` is none. Without adapters
the teacher is a second copy of the weights, and `base` the frozen start.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from resd_lightning.config import ConfigError, LoraSettings, TeacherConfig
from resd_lightning.policy.ema import ExponentialMovingAverage
from resd_lightning.policy.shard import copy_whole, gathered, shard_layers, shard_whole, whole

View = Literal["student", "teacher", "base"]
STUDENT: View = "student"
TEACHER: View = "teacher"


class Policy(nn.Module):
    """The student, its teacher and the tokenizer they share.

    Args:
        base: The loaded model; with adapters its weights are frozen, without them they are the student.
        tokenizer: Its tokenizer, with a chat template.
        lora: Shape of the adapters; None trains the base's own weights.
        teacher: Which teacher the policy keeps.
        is_packed: Losses run their micro-batches without padding, as one sequence.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        lora: LoraSettings | None,
        teacher: TeacherConfig,
        is_packed: bool = False,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.teacher_config = teacher
        self.has_adapters = lora is not None
        self.is_packed = is_packed
        self.is_sharded = False
        """Each rank holds a share of the weights; set by `shard`."""
        self.precision_context: Callable[[], AbstractContextManager[None]] = nullcontext
        """Entered around every frozen forward; the trainer's precision, set when a trainer is attached."""
        self.model: PreTrainedModel | PeftModel = base if lora is None else with_two_adapters(base, lora)
        # A copy that nn.Module doesn't see: it must not reach the optimizer, DDP or the trainer's casts to bf16.
        self._copies: dict[View, PreTrainedModel] = {}
        if lora is None and teacher.kind != "live":
            self._copies[TEACHER] = copy.deepcopy(base).requires_grad_(False).eval()
        self._ema: ExponentialMovingAverage | None = None
        self._restored_average: dict[str, Tensor] | None = None

    def shard(self, mesh: DeviceMesh) -> None:
        """Spread the weights over the ranks of a mesh by FSDP2, once and before an optimizer is made.

        Raises:
            ConfigError: The model doesn't say what its layers are.
        """
        if isinstance(self.model, PeftModel):
            shard_layers(self.model.get_base_model(), mesh)  # the PeftModel itself is no layer of anything
        else:
            for model in (self.model, *self._copies.values()):
                shard_whole(model, mesh)
        self.is_sharded = True

    def gathered(self, model: nn.Module) -> AbstractContextManager[None]:
        """Hold a view's whole weights on every rank, where they are sharded; all enter together. See `policy.shard`.

        Inside, the model's weights are whole copies: read them, and train nothing.
        """
        return gathered(model) if self.is_sharded else nullcontext()

    # Weights

    def student_weights(self) -> dict[str, Tensor]:
        """Return the trained weights by name, without an adapter's name in them."""
        if not self.has_adapters:
            return dict(self.model.named_parameters())
        return adapter_weights(self.model, STUDENT)

    def zero(self) -> Tensor:
        """Return a zero whose gradient is a zero for every trained weight: a loss of nothing, at no forward's cost."""
        trained = [weight for weight in self.student_weights().values() if weight.requires_grad]
        return torch.stack([weight.sum() for weight in trained]).sum() * 0.0

    def teacher_weights(self) -> dict[str, Tensor]:
        """Return the teacher's own weights under the student's names; the student's where the teacher is live."""
        if self.teacher_config.kind == "live":
            return self.student_weights()
        if not self.has_adapters:
            return dict(self._whole_model(TEACHER).named_parameters())
        return adapter_weights(self.model, TEACHER)

    @property
    def ema(self) -> ExponentialMovingAverage:
        """The average behind an EMA teacher.

        It is made on first use, when the trainer has given the weights their device and precision: a checkpoint is
        loaded before that, and its fp32 average must not pass through bf16 weights.
        """
        if self.teacher_config.kind != "ema":
            raise ValueError(f"model.teacher.kind is {self.teacher_config.kind}: it keeps no moving average")
        if self._ema is None:
            self._ema = ExponentialMovingAverage(
                self.student_weights(), self.teacher_weights(), self.teacher_config.ema_rate
            )
            if self._restored_average is not None:
                self._ema.load_state_dict(self._restored_average)
                self._restored_average = None
        return self._ema

    def sync_teacher(self) -> None:
        """Move an EMA teacher one step toward the student (RESD Alg. 1 line 19); other kinds have nothing to move."""
        if self.teacher_config.kind == "ema":
            self.ema.step()

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return what training changes, for a checkpoint: student weights, and the teacher's in fp32.

        They are whole on every rank, and all ranks must ask together.
        """
        state: dict[str, dict[str, Tensor]] = {STUDENT: _on_cpu(self.student_weights())}
        if self.teacher_config.kind == "ema":
            state[TEACHER] = _on_cpu(self.ema.state_dict())
        elif self.teacher_config.kind != "live":
            state[TEACHER] = _on_cpu(self.teacher_weights())
        return state

    @torch.no_grad()
    def load_state(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Restore what `state` returned.

        Raises:
            KeyError: A weight is missing.
            RuntimeError: A weight has another shape.
        """
        for name, tensor in self.student_weights().items():
            copy_whole(tensor, state[STUDENT][name])
        if self.teacher_config.kind == "live":
            return
        for name, tensor in self.teacher_weights().items():
            copy_whole(tensor, state[TEACHER][name])
        if self.teacher_config.kind == "ema":
            self._ema, self._restored_average = None, state[TEACHER]

    # Views

    @contextmanager
    def view(self, who: View) -> Iterator[PreTrainedModel | PeftModel]:
        """Yield the model with `who`'s weights in force; what was in force before is back when the context ends.

        No `requires_grad` flag changes. Leave the context before a backward pass: gradient checkpointing recomputes
        with whatever weights are in force then.
        """
        if who == TEACHER and self.teacher_config.kind == "live":
            who = STUDENT
        if not self.has_adapters:
            yield self._whole_model(who)
            return
        layers = [module for module in self.model.modules() if isinstance(module, BaseTunerLayer)]
        before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
        for layer in layers:
            # Both, also for the student: a view inside another view means what it says.
            layer._active_adapter, layer._disable_adapters = [TEACHER if who == TEACHER else STUDENT], who == "base"
        try:
            yield self.model
        finally:
            for layer, (active, disabled) in zip(layers, before, strict=True):
                layer._active_adapter, layer._disable_adapters = active, disabled

    @contextmanager
    def frozen(self, who: View) -> Iterator[PreTrainedModel | PeftModel]:
        """Yield `who`'s view in eval mode, without gradient, under the trainer's precision.

        Everything but the student's training forward runs in here: rollouts, reflections, teacher scores.
        """
        with self.view(who) as model:
            was_training = model.training
            model.eval()
            try:
                with torch.no_grad(), self.precision_context():
                    yield model
            finally:
                model.train(was_training)

    def as_teacher(self) -> AbstractContextManager[PreTrainedModel | PeftModel]:
        """Yield the frozen teacher; short for ``frozen("teacher")``."""
        return self.frozen(TEACHER)

    def teacher_logits(self, forward: Callable[[PreTrainedModel | PeftModel], Tensor]) -> Tensor:
        """Return the frozen teacher's logits, `forward` being what a model makes of some tokens.

        A trust-region teacher mixes the initial model's logits with the current student's before any softmax.
        """
        with self.as_teacher() as model:
            logits = forward(model)
        if self.teacher_config.kind != "trust_region":
            return logits
        with self.frozen(STUDENT) as model:
            student = forward(model)
        return torch.lerp(logits.float(), student.float(), self.teacher_config.trust_region_rate)

    def _whole_model(self, who: View) -> PreTrainedModel | PeftModel:
        # Without adapters `base` is asked for only where the teacher still is the start: the module refuses the rest.
        return self.model if who == STUDENT else self._copies[TEACHER].to(self.device)

    @property
    def device(self) -> torch.device:
        """The device of the student's weights."""
        return next(iter(self.student_weights().values())).device

    def weights_to_save(self, who: View = STUDENT) -> dict[str, Tensor] | None:
        """Return weights for `save_pretrained` or `save_adapter`, whole and by their full names.

        All ranks ask together. None where they are whole anyway: the model finds them itself.

        Args:
            who: The student, or the teacher where they are adapters.
        """
        if not self.is_sharded:
            return None
        own = adapter_parameters(self.model, self._adapter_of(who)) if self.has_adapters else self.model.state_dict()
        return {name: whole(tensor.detach()).cpu() for name, tensor in own.items()}

    def save_pretrained(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        """Write the student in Hugging Face format: a PEFT adapter, or the whole model without adapters.

        `PeftModel.from_pretrained(base, folder)` loads the adapter; the tokenizer is written beside it.

        Args:
            folder: Made if it isn't there.
            weights: What `weights_to_save` returned.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(self.model, PeftModel):
            self.save_adapter(folder, STUDENT, weights)
        else:
            self.model.save_pretrained(folder, state_dict=weights)
        self.tokenizer.save_pretrained(folder)

    def save_adapter(self, folder: Path, who: View, weights: dict[str, Tensor] | None = None) -> None:
        """Write the student's or the teacher's adapter, and nothing else, in PEFT's format.

        Args:
            folder: Made if it isn't there.
            who: Whose.
            weights: What `weights_to_save` returned for the same.
        """
        adapter = self._adapter_of(who)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            self.model.save_pretrained(scratch, selected_adapters=[adapter], state_dict=weights)
            for file in (Path(scratch) / adapter).iterdir():  # PEFT puts a named adapter in a subfolder
                file.replace(folder / file.name)

    def _adapter_of(self, who: View) -> View:
        return STUDENT if self.teacher_config.kind == "live" else who


def with_two_adapters(base: PreTrainedModel, lora: LoraSettings) -> PeftModel:
    """Return the base under the student's and the teacher's adapter, which begin alike.

    Raises:
        ConfigError: No layer has a name among `target_modules`.
    """
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )
    try:
        model = get_peft_model(base, config, adapter_name=STUDENT)
    except ValueError as error:  # no layer has such a name
        raise ConfigError(f"model.policy.lora.target_modules {lora.target_modules}: {error}") from error
    model.add_adapter(TEACHER, copy.deepcopy(config))
    student, teacher = adapter_weights(model, STUDENT), adapter_weights(model, TEACHER)
    with torch.no_grad():
        for name, tensor in teacher.items():  # add_adapter draws its own A: without the copy they start apart
            tensor.copy_(student[name])
            tensor.requires_grad_(False)
    return model


def _on_cpu(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: whole(tensor.detach()).to("cpu", copy=True) for name, tensor in weights.items()}


def adapter_weights(model: nn.Module, adapter: View) -> dict[str, Tensor]:
    """Return an adapter's weights by name, without its own name in them."""
    own = adapter_parameters(model, adapter)
    return {".".join(part for part in name.split(".") if part != adapter): weight for name, weight in own.items()}


def adapter_parameters(model: nn.Module, adapter: View) -> dict[str, Tensor]:
    """Return an adapter's weights by their full names."""
    weights: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        parts = name.split(".")  # on embeddings the adapter's name comes last, on linear layers before `weight`
        if adapter in parts and any(part.startswith("lora_") for part in parts):
            weights[name] = parameter
    return weights
