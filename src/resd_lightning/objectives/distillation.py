"""The self-distillation objective of one update: which tokens count how much, and their loss (RESD lines 17 and 18)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from resd_lightning.config import ConfigError, DistillationConfig
from resd_lightning.distill.align import empty_batch, make_batch, response_hidden, response_logits
from resd_lightning.distill.divergence import DistillationLoss, check_divergence_settings, distillation_loss
from resd_lightning.distill.fused import fused_distillation_loss
from resd_lightning.distill.fused import token_log_probs as fused_token_log_probs
from resd_lightning.distill.log_probs import token_log_probs
from resd_lightning.distill.prefix import SharedPrefix, common_prefix
from resd_lightning.distill.weights import importance_weights, success_rate_weights
from resd_lightning.objectives.fused_or_plain import chooses_fused
from resd_lightning.objectives.objective import Cut, Objective, reduce_over
from resd_lightning.policy.head import backbone_of, frozen_head
from resd_lightning.policy.layers import obstacle_to_prefix
from resd_lightning.policy.views import Policy
from resd_lightning.records import DistillBatch, Rollout, TeacherPrompt

LEAST_SAVING = 0.1
"""Share of the teacher's tokens that reading a common beginning once must save for `auto` to do so."""


class DistillationObjective(Objective[DistillBatch]):
    """Pulls the student's distribution over its own tokens toward the teacher's.

    Args:
        config: Divergence, top-k, clipping, reduction and success weights.

    Raises:
        ConfigError: A setting is out of range; the text names its key.
    """

    uses_teacher = True

    def __init__(self, config: DistillationConfig) -> None:
        super().__init__()
        self.config = config
        self.is_fused: bool | None = None
        self._token_facts: dict[str, Float[Tensor, "batch time"]] = {}
        self._can_share_prefix = False
        self._prefix_tokens = 0
        self._prefix: SharedPrefix | None = None
        self._sampled_apart_at: float | None = None
        self._num_counted_tokens = 1
        self.check_vocabulary(None)

    def check_vocabulary(self, vocab_size: int | None) -> None:
        """Refuse settings out of range, and a top-k that the model's vocabulary can't fill where its size is known.

        Raises:
            ConfigError: The text names the key.
        """
        config = self.config
        try:
            check_divergence_settings(
                config.alpha, config.top_k, config.tail, config.clip_min, config.clip_max, vocab_size=vocab_size
            )
        except ValueError as error:
            raise ConfigError(f"model.{error}") from error

    def weighs_by_engine(self, is_apart: bool, temperature: float) -> None:
        """Weigh tokens by the ratio of the trainer's to the engine's probability, where these are two programs.

        Args:
            is_apart: Whether they are.
            temperature: The rollouts' sampling temperature, which the engine's log-probs are at.
        """
        self._sampled_apart_at = temperature if is_apart and self.config.importance_clip is not None else None

    def coefficients(self, rollouts: Sequence[Rollout], prompts: Sequence[TeacherPrompt]) -> Float[Tensor, " rollout"]:
        """Return each rollout's factor on the sum of its token losses; see `reduce_over`.

        A rollout whose teacher prompt is plain gets 0 but counts as a sequence.
        """
        counted = torch.tensor([prompt.is_enriched for prompt in prompts], dtype=torch.bool)
        return reduce_over(rollouts, counted, self.weights(rollouts), self.config.reduction)

    def describe(self, rollouts: Sequence[Rollout], prompts: Sequence[TeacherPrompt]) -> list[Mapping[str, float]]:
        """Return each rollout's coefficient."""
        return [{"loss_coefficient": coefficient} for coefficient in self.coefficients(rollouts, prompts).tolist()]

    def weights(self, rollouts: Sequence[Rollout]) -> Float[Tensor, " rollout"]:
        """Return the success-rate weights of App. B, or ones where they are off."""
        is_success = torch.tensor([rollout.is_success for rollout in rollouts], dtype=torch.bool)
        if not self.config.success_weights:
            return torch.ones(len(rollouts))
        return success_rate_weights(is_success, self.config.success_alpha, self.config.success_beta)

    def micro_batches(
        self, rollouts: Sequence[Rollout], prompts: Sequence[TeacherPrompt], cut: Cut
    ) -> list[DistillBatch]:
        """Return the micro-batches of the rollouts whose teacher knows more than they did; see `Objective`."""
        coefficients = self.coefficients(rollouts, prompts).tolist()
        counted = [i for i, prompt in enumerate(prompts) if prompt.is_enriched and rollouts[i].completion.token_ids]
        prefix = self._choose_prefix([(prompts[i], rollouts[i]) for i in counted])
        self._prefix_tokens, self._prefix = len(prefix), None
        lengths = {
            i: (
                max(len(rollouts[i].completion.prompt_ids), len(prompts[i].token_ids)),
                len(rollouts[i].completion.token_ids),
            )
            for i in counted
        }
        batches = [
            make_batch(
                [rollouts[i].completion.prompt_ids for i in chunk],
                [prompts[i].token_ids for i in chunk],
                [rollouts[i].completion.token_ids for i in chunk],
                [coefficients[i] for i in chunk],
                cut.pad_id,
                chunk,
                prefix,
                self._engine_log_probs([rollouts[i] for i in chunk]),
            )
            for chunk in cut.chunks(lengths)
        ]
        self._num_counted_tokens = max(1, sum(response for _, response in lengths.values()))
        filler = empty_batch(cut.pad_id, prefix)  # every rank reads the prefix, should it have nothing else to read
        if self._sampled_apart_at is not None:  # as in every batch, so that all ranks have the same sums
            filler.engine_log_probs = torch.zeros(filler.response_mask.shape)
        return batches + [filler] * (cut.num_slots - len(batches))

    def _engine_log_probs(self, rollouts: Sequence[Rollout]) -> list[tuple[float, ...]] | None:
        if self._sampled_apart_at is None:
            return None
        known = [rollout.completion.log_probs for rollout in rollouts]
        if None in known:
            raise RuntimeError("model.distillation.importance_clip needs log-probs, which data.engine hasn't given")
        return [row for row in known if row is not None]

    def _choose_prefix(self, counted: Sequence[tuple[TeacherPrompt, Rollout]]) -> tuple[int, ...]:
        """Return the tokens that all teacher prompts begin with, if they are to be read once for all of them."""
        how = self.config.teacher_prefix
        prefix = common_prefix([prompt.token_ids for prompt, _ in counted]) if self._can_share_prefix else ()
        total = sum(len(prompt.token_ids) + len(rollout.completion.token_ids) for prompt, rollout in counted)
        saved = (len(counted) - 1) * len(prefix)
        return prefix if saved and (how == "shared" or saved >= LEAST_SAVING * total) else ()

    def cut_metrics(self) -> dict[str, float]:
        """Return how many tokens the teacher reads once for all of the update's prompts."""
        return {"teacher/shared_prefix_tokens": float(self._prefix_tokens)}

    def end_update(self) -> None:
        """Forget what the teacher has read."""
        self._prefix = None

    def prepare(self, policy: Policy) -> None:
        """Choose for this policy between the fused and the plain loss, and whether the teacher can share a prefix.

        Raises:
            ConfigError: What is asked for can't be; the text says why.
        """
        self.is_fused = chooses_fused(self.config, policy)
        obstacle = self._obstacle_to_prefix(policy)
        if obstacle is not None and self.config.teacher_prefix == "shared":
            raise ConfigError(f"model.distillation.teacher_prefix shared can't be: {obstacle}; set it to auto")
        self._can_share_prefix = obstacle is None and self.config.teacher_prefix != "repeated"

    @staticmethod
    def _obstacle_to_prefix(policy: Policy) -> str | None:
        if policy.teacher_config.kind == "trust_region":
            return "model.teacher.kind trust_region has two models read each prompt"
        if policy.is_sharded and not policy.has_adapters:
            return "a sharded model that is trained as a whole is run as a whole, its output head included"
        return obstacle_to_prefix(policy.model)

    def loss(self, policy: Policy, batch: DistillBatch) -> Float[Tensor, ""]:
        """Return this micro-batch's part of the update's loss; the parts add up to it.

        The teacher goes first and without gradient; the student's graph is the only one that lives.
        """
        if self.is_fused is None:
            self.prepare(policy)
        result, log_probs = self._fused_loss(policy, batch) if self.is_fused else self._plain_loss(policy, batch)
        facts = {
            "divergence": result.per_token.detach(),
            "clipped_share": result.clipped_share,
            "clipped_mass": result.clipped_mass,
        }
        self._token_facts = {name: values for name, values in facts.items() if values is not None}
        per_token = result.per_token
        if log_probs is not None:
            per_token = per_token * self._importance(log_probs, batch)
        return (per_token.sum(dim=-1) * batch.coefficients).sum()  # (B, T) -> (B,) -> ()

    def _importance(self, log_probs: Float[Tensor, "batch time"], batch: DistillBatch) -> Float[Tensor, "batch time"]:
        clip = self.config.importance_clip
        assert clip is not None
        assert batch.engine_log_probs is not None  # log_probs were made for them
        weights = importance_weights(log_probs, batch.engine_log_probs, clip)
        shares = batch.response_mask * (not batch.is_filler) / self._num_counted_tokens
        self._add("distillation/importance_weight", (weights * shares).sum())
        self._add("distillation/importance_clipped_share", ((weights >= clip) * shares).sum())
        return weights

    def take_token_facts(self) -> dict[str, Float[Tensor, "batch time"]]:
        """Return divergence and, where the loss tells, what was clipped; see `Objective`."""
        facts, self._token_facts = self._token_facts, {}
        return facts

    def _plain_loss(
        self, policy: Policy, batch: DistillBatch
    ) -> tuple[DistillationLoss, Float[Tensor, "batch time"] | None]:
        """Return the loss, and the student's log-probs of the tokens where the engine's are there to compare."""
        time = batch.response_mask.shape[1]
        teacher = self.teacher_logits(policy, batch)
        student = response_logits(policy.model, batch.student_ids, batch.student_mask, time, is_packed=policy.is_packed)
        result = distillation_loss(
            student,
            teacher,
            batch.response_mask,
            alpha=self.config.alpha,
            top_k=self.config.top_k,
            tail=self.config.tail,
            clip_min=self.config.clip_min,
            clip_max=self.config.clip_max,
        )
        if batch.engine_log_probs is None or self._sampled_apart_at is None:
            return result, None
        ids = batch.student_ids[:, -time:]
        return result, token_log_probs(student.detach(), ids, batch.response_mask, self._sampled_apart_at)

    def _fused_loss(
        self, policy: Policy, batch: DistillBatch
    ) -> tuple[DistillationLoss, Float[Tensor, "batch time"] | None]:
        time, head = batch.response_mask.shape[1], frozen_head(policy)
        with policy.as_teacher() as model:
            teachers, prefix = (batch.teacher_ids, batch.teacher_mask), self._read_prefix(model, batch)
            hidden = response_hidden(backbone_of(model), *teachers, time, is_packed=policy.is_packed, prefix=prefix)
            teacher = hidden.clone()  # copied, since what is sliced keeps the prompt's hidden states in memory
            del hidden
        students = (batch.student_ids, batch.student_mask)
        student = response_hidden(backbone_of(policy.model), *students, time, is_packed=policy.is_packed)
        result = fused_distillation_loss(
            student,
            head,
            teacher,
            head,
            batch.response_mask,
            alpha=self.config.alpha,
            top_k=self.config.top_k,
            tail=self.config.tail,
            clip_min=self.config.clip_min,
            clip_max=self.config.clip_max,
            chunk_tokens=self.config.chunk_tokens,
        )
        if batch.engine_log_probs is None or self._sampled_apart_at is None:
            return result, None
        scaled, ids = student.detach() / self._sampled_apart_at, batch.student_ids[:, -time:]
        return result, fused_token_log_probs(scaled, head, ids, batch.response_mask, self.config.chunk_tokens)

    def teacher_logits(self, policy: Policy, batch: DistillBatch) -> Float[Tensor, "batch time vocab"]:
        """Return the frozen-context teacher's logits on the student's own tokens, without gradient."""

        def read(model: PreTrainedModel | PeftModel) -> Tensor:
            time, prefix = batch.response_mask.shape[1], self._read_prefix(model, batch)
            own = (batch.teacher_ids, batch.teacher_mask)
            return response_logits(model, *own, time, is_packed=policy.is_packed, prefix=prefix)

        return policy.teacher_logits(read)

    def _read_prefix(self, model: PreTrainedModel | PeftModel, batch: DistillBatch) -> SharedPrefix | None:
        """Return what stands before the batch's teacher prompts, as the teacher read it for the update's first."""
        if len(batch.teacher_prefix) == 0:
            return None
        if self._prefix is None:
            self._prefix = SharedPrefix(backbone_of(model), batch.teacher_prefix)
        return self._prefix
