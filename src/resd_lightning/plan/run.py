"""The numbers of a run that set its memory and its work, apart from the base's sizes."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Literal

from resd_lightning.config import DistillationConfig, ObjectiveName, OptimizerKind, PolicyConfig, TeacherKind
from resd_lightning.objectives.fused_or_plain import expects_fused, expects_fused_log_probs
from resd_lightning.plan.shape import Shape

Device = Literal["cuda", "cpu"]


@dataclass(frozen=True)
class Call:
    """Text that a model generates for one purpose.

    Attributes:
        name: The purpose.
        prompt: Longest prompt, in tokens.
        response: Longest response, in tokens.
        sequences: How many there are in one update.
    """

    name: str
    prompt: int
    response: int
    sequences: int


@dataclass(frozen=True)
class Run:
    """One run on one device, at the limits of its configuration.

    Attributes:
        shape: The base's sizes and the adapters'.
        policy: How the base is held.
        teacher: Whose weights score.
        distillation: The loss's settings.
        objectives: What updates minimise, over all phases of the run.
        optimizer: `model.optimizer.kind`.
        is_mixed: Whether the trainer's precision computes in 16 bits beside 32-bit weights (autocast).
        device: The kind of device.
        micro_batch: `data.micro_batch_size`, or as many of the longest sequences as `data.micro_batch_tokens` lets be.
        prompt: `data.max_prompt_tokens`.
        response: `data.rollout.max_new_tokens`.
        teacher_prompt: `model.teacher_prompt.max_tokens`.
        engine_batch: Responses that are generated at once; None where another process generates.
        batch: Prompts of an update.
        rollouts: Responses of an update.
        context: Reflection, tags and curation, as far as the run has them.
        validation: Longest response of a validation.
        validations: Responses of a validation that the engine gets at once.
        ranks: Devices that share the prompts, each with micro-batches of its own.
        is_sharded: Whether they share the layers' weights as well (FSDP2).
    """

    shape: Shape
    policy: PolicyConfig
    teacher: TeacherKind
    distillation: DistillationConfig
    objectives: tuple[ObjectiveName, ...]
    optimizer: OptimizerKind
    is_mixed: bool
    device: Device
    micro_batch: int
    prompt: int
    response: int
    teacher_prompt: int
    engine_batch: int | None
    batch: int
    rollouts: int
    context: tuple[Call, ...]
    validation: int
    validations: int
    ranks: int = 1
    is_sharded: bool = False

    # Precisions, in bytes of a number

    @property
    def stored_bytes(self) -> int:
        """Of the base's weights that aren't in 4 bits, and of the residual stream that comes from the embedding."""
        return 4 if self.policy.dtype == "float32" else 2

    @property
    def compute_bytes(self) -> int:
        """Of what matrix products make."""
        return 2 if self.is_mixed else self.stored_bytes

    @property
    def is_nf4(self) -> bool:
        """Whether the linear layers are in 4 bits."""
        return self.policy.quantization == "nf4"

    @property
    def is_fused(self) -> bool:
        """Whether the distillation loss is the fused one."""
        return expects_fused(
            self.distillation, self.teacher, self.policy.lora is not None, self.shape.head_obstacle, self.shape.vocab
        )

    @property
    def is_grpo_fused(self) -> bool:
        """Whether GRPO's log-probs are made in chunks of tokens; nothing but head and vocabulary decides."""
        return expects_fused_log_probs(self.policy.lora is not None, self.shape.head_obstacle, self.shape.vocab)

    @property
    def distills(self) -> bool:
        """Whether some update has a teacher."""
        return "grpo" not in self.objectives or len(self.objectives) > 1

    # Shares

    def on_a_rank(self, sequences: int) -> int:
        """Return how many of an update's sequences the rank with most of them has."""
        return ceil(sequences / self.ranks)

    @property
    def shards(self) -> int:
        """Parts that the layers' weights are cut into."""
        return self.ranks if self.is_sharded else 1

    # Lengths

    @property
    def is_padded(self) -> bool:
        """Whether a micro-batch has padding, and so a mask of (time x time): all but single sequences."""
        return self.micro_batch > 1

    @property
    def rollout(self) -> Call:
        """The training rollouts."""
        return Call("rollout", self.prompt, self.response, self.rollouts)
