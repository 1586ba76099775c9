"""The self-distillation objective of one update: which tokens count how much, and their loss (RESD lines 17 and 18)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from resd_lightning.config import ConfigError, DistillationConfig
from resd_lightning.distill.align import empty_batch, make_batch, response_logits
from resd_lightning.distill.divergence import check_divergence_settings, distillation_loss
from resd_lightning.distill.weights import success_rate_weights
from resd_lightning.policy.views import Policy
from resd_lightning.records import DistillBatch, LossFacts, Rollout, TeacherPrompt


class DistillationObjective:
    """Pulls the student's distribution over its own tokens toward the teacher's.

    Args:
        config: Divergence, top-k, clipping, reduction and success weights.

    Raises:
        ConfigError: A setting is out of range; the text names its key.
    """

    def __init__(self, config: DistillationConfig) -> None:
        self.config = config
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

    def coefficients(self, rollouts: Sequence[Rollout], prompts: Sequence[TeacherPrompt]) -> Float[Tensor, " rollout"]:
        """Return each rollout's factor on the sum of its token losses, so that the sum over rollouts is the loss.

        A rollout whose teacher prompt is plain gets 0 but counts as a sequence. They are computed from the whole
        update, over all ranks, before its first micro-batch, so how an update is cut up doesn't change it.

        Returns:
            (rollout,) fp32: weight / (N x T_i) for sequence_mean, weight / N for sequence_sum, weight / sum of T_i for
            token_mean; N is the number of rollouts, T_i the response tokens of rollout i.
        """
        # With the types named, an update all of whose questions were too long is a tensor of no rollouts.
        lengths = torch.tensor([len(rollout.completion.token_ids) for rollout in rollouts], dtype=torch.float32)
        counted = torch.tensor([prompt.is_enriched for prompt in prompts], dtype=torch.bool) & (lengths > 0)
        weights = self.weights(rollouts) * counted
        if self.config.reduction == "token_mean":
            return weights / lengths[counted].sum().clamp_min(1)
        if self.config.reduction == "sequence_sum":
            return weights / len(rollouts)
        return weights / (len(rollouts) * lengths.clamp_min(1))

    def weights(self, rollouts: Sequence[Rollout]) -> Float[Tensor, " rollout"]:
        """Return the success-rate weights of App. B, or ones where they are off."""
        is_success = torch.tensor([rollout.is_success for rollout in rollouts], dtype=torch.bool)
        if not self.config.success_weights:
            return torch.ones(len(rollouts))
        return success_rate_weights(is_success, self.config.success_alpha, self.config.success_beta)

    def micro_batches(
        self,
        rollouts: Sequence[Rollout],
        prompts: Sequence[TeacherPrompt],
        *,
        micro_batch_size: int,
        num_slots: int,
        pad_id: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> list[DistillBatch]:
        """Return exactly `num_slots` micro-batches of this rank's share; slots left over weigh nothing.

        Args:
            rollouts: All rollouts of the update, over all ranks.
            prompts: Their teacher prompts.
            micro_batch_size: Rollouts per micro-batch.
            num_slots: Micro-batches that every rank runs in every update.
            pad_id: Token that fills the padding.
            rank: This process among `world_size`.
            world_size: Number of processes that share the update.
        """
        coefficients = self.coefficients(rollouts, prompts).tolist()
        counted = [i for i, prompt in enumerate(prompts) if prompt.is_enriched and rollouts[i].completion.token_ids]
        mine = counted[rank::world_size]
        batches = []
        for start in range(0, len(mine), micro_batch_size):
            chunk = mine[start : start + micro_batch_size]
            batches.append(
                make_batch(
                    [rollouts[i].completion.prompt_ids for i in chunk],
                    [prompts[i].token_ids for i in chunk],
                    [rollouts[i].completion.token_ids for i in chunk],
                    [coefficients[i] for i in chunk],
                    pad_id,
                    chunk,
                )
            )
        return batches + [empty_batch(pad_id) for _ in range(num_slots - len(batches))]

    def loss(self, policy: Policy, batch: DistillBatch) -> LossFacts:
        """Return this micro-batch's part of the update's loss, which the parts add up to, and what it was made of.

        The teacher goes first and without gradient; the student's graph is the only one that lives.
        """
        time = batch.response_mask.shape[1]
        teacher = self.teacher_logits(policy, batch)
        student = response_logits(policy.model, batch.student_ids, batch.student_mask, time)
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
        facts = {
            "divergence": result.per_token,
            "clipped_share": result.clipped_share,
            "clipped_mass": result.clipped_mass,
        }
        return LossFacts(
            (result.per_token.sum(dim=-1) * batch.coefficients).sum(),  # (B, T) -> (B,) -> ()
            {name: values.detach() for name, values in facts.items() if values is not None},
        )

    @staticmethod
    def teacher_logits(policy: Policy, batch: DistillBatch) -> Float[Tensor, "batch time vocab"]:
        """Return the frozen-context teacher's logits on the student's own tokens, without gradient."""
        time = batch.response_mask.shape[1]
        return policy.teacher_logits(lambda model: response_logits(model, batch.teacher_ids, batch.teacher_mask, time))
