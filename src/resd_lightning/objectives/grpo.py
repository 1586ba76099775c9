"""GRPO: a response is better or worse than the others to its prompt, and its tokens become likelier or less likely.

Shao et al., "DeepSeekMath" (2024), with the asymmetric clip of DAPO (Yu et al. 2025), as the paper's baseline has it
(RESD section 5). No teacher and no context: all that counts is the reward.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from resd_lightning.config import GrpoConfig
from resd_lightning.distill.align import at_tokens, beside, response_mask
from resd_lightning.distill.log_probs import response_log_probs
from resd_lightning.objectives.fused_or_plain import chooses_fused_log_probs
from resd_lightning.objectives.objective import Cut, Objective, reduce_over
from resd_lightning.policy.head import backbone_of, frozen_head
from resd_lightning.policy.views import Policy
from resd_lightning.records import GrpoBatch, Rollout, TeacherPrompt

STD_EPSILON = 1e-6
"""Added to a group's standard deviation, as in veRL."""


class GrpoObjective(Objective[GrpoBatch]):
    """Raises the log-probability of the tokens of better-than-average responses, and lowers that of the others.

    Both policies are the model at the sampling temperature with its whole vocabulary: top-p shapes what is sampled and
    not what is compared, as in TRL and veRL. With one optimizer step on fresh samples the new policy is the old one, so
    the ratio tells only how far engine and trainer are apart, and the clip acts on that alone. Where the engine records
    no log-probs the student's own at the step stand for them: the weights haven't moved since the rollout.

    Args:
        config: Advantages, clip, KL and reduction.
        temperature: The rollouts' sampling temperature.
    """

    uses_teacher = False

    def __init__(self, config: GrpoConfig, temperature: float = 1.0) -> None:
        super().__init__()
        self.config = config
        self.temperature = temperature
        self._is_fused: bool | None = None

    def advantages(self, rollouts: Sequence[Rollout]) -> Float[Tensor, " rollout"]:
        """Return each rollout's advantage over its group, the rollouts of its prompt."""
        rewards = torch.tensor([rollout.feedback.reward for rollout in rollouts], dtype=torch.float32)
        groups = [rollout.example.id for rollout in rollouts]
        return group_advantages(rewards, groups, normalize_by_std=self.config.normalize_by_std)

    def coefficients(self, rollouts: Sequence[Rollout]) -> Float[Tensor, " rollout"]:
        """Return each rollout's factor on the sum of its token losses; see `reduce_over`.

        A group without signal counts among sequences and tokens, as in TRL and veRL: its share of the loss is zero.
        """
        everyone = torch.ones(len(rollouts))
        return reduce_over(rollouts, everyone.bool(), everyone, self.config.reduction)

    def measure(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """Return how many groups there are, and how many teach nothing because all their rewards are equal."""
        rewards: dict[str, set[float]] = defaultdict(set)
        for rollout in rollouts:
            rewards[rollout.example.id].add(rollout.feedback.reward)
        return {
            "grpo/groups": float(len(rewards)),
            "grpo/groups_without_signal": float(sum(len(different) == 1 for different in rewards.values())),
            "grpo/without_rollout_log_probs": float(sum(r.completion.log_probs is None for r in rollouts)),
        }

    def describe(self, rollouts: Sequence[Rollout], prompts: Sequence[TeacherPrompt]) -> list[Mapping[str, float]]:
        """Return each rollout's advantage."""
        return [{"advantage": advantage} for advantage in self.advantages(rollouts).tolist()]

    def micro_batches(self, rollouts: Sequence[Rollout], prompts: Sequence[TeacherPrompt], cut: Cut) -> list[GrpoBatch]:
        """Return the micro-batches of the rollouts with an advantage, of all under a KL term; see `Objective`."""
        advantages, coefficients = self.advantages(rollouts).tolist(), self.coefficients(rollouts).tolist()
        counted = [
            i
            for i, rollout in enumerate(rollouts)
            if rollout.completion.token_ids and (advantages[i] != 0 or self.config.kl_coefficient > 0)
        ]
        lengths = {i: (len(rollouts[i].completion.prompt_ids), len(rollouts[i].completion.token_ids)) for i in counted}
        num_tokens = sum(len(rollouts[i].completion.token_ids) for i in counted)
        # One engine wrote all rollouts. Should it have left one out, all are treated alike, however they are cut.
        is_recorded = all(rollouts[i].completion.log_probs is not None for i in counted)
        batches = [
            make_grpo_batch(
                [rollouts[i].completion.prompt_ids for i in chunk],
                [rollouts[i].completion.token_ids for i in chunk],
                [rollouts[i].completion.log_probs or () for i in chunk] if is_recorded else None,
                [advantages[i] for i in chunk],
                [coefficients[i] for i in chunk],
                num_tokens,
                cut.pad_id,
            )
            for chunk in cut.chunks(lengths)
        ]
        filler = make_grpo_batch([[cut.pad_id]], [[cut.pad_id]], None, [0.0], [0.0], max(num_tokens, 1), cut.pad_id)
        filler.is_filler = True
        return batches + [filler for _ in range(cut.num_slots - len(batches))]

    def loss(self, policy: Policy, batch: GrpoBatch) -> Float[Tensor, ""]:
        """Return this micro-batch's part of the update's loss; the parts add up to it.

        The initial model goes first and without gradient; the student's graph is the only one that lives.
        """
        config = self.config
        if self._is_fused is None:
            self._is_fused = chooses_fused_log_probs(policy)
        reference = None
        if config.kl_coefficient > 0:
            with policy.frozen("base") as model:
                reference = self.log_probs(policy, model, batch)
        log_probs = self.log_probs(policy, policy.model, batch)
        old = log_probs.detach() if batch.old_log_probs is None else batch.old_log_probs
        token_loss, is_clipped = clipped_surrogate(
            log_probs, old, batch.advantages, clip_low=config.clip_low, clip_high=config.clip_high
        )
        shares = batch.response_mask * (batch.coefficients > 0).unsqueeze(-1) / batch.num_update_tokens  # no filler's
        self._add("grpo/clipped_share", (is_clipped * shares).sum())
        self._add("grpo/log_ratio", ((log_probs.detach() - old).abs() * shares).sum())
        if reference is not None:
            kl = k3(log_probs, reference)
            self._add("grpo/kl", (kl * shares).sum())
            token_loss = token_loss + config.kl_coefficient * kl
        return ((token_loss * batch.response_mask).sum(dim=-1) * batch.coefficients).sum()  # (B, T) -> (B,) -> ()

    def log_probs(
        self, policy: Policy, model: PreTrainedModel | PeftModel, batch: GrpoBatch
    ) -> Float[Tensor, "batch time"]:
        """Return the log-probability of each response token at the sampling temperature, by one of the policy's views.

        Where that is fused, the logits of all tokens never exist at once; see `distill.fused`.
        """
        return response_log_probs(
            backbone_of(model) if self._is_fused else model,
            frozen_head(policy) if self._is_fused else None,
            batch.student_ids,
            batch.student_mask,
            batch.response_mask,
            self.temperature,
            is_packed=policy.is_packed,
        )


def group_advantages(
    rewards: Float[Tensor, " rollout"], groups: Sequence[str], *, normalize_by_std: bool
) -> Float[Tensor, " rollout"]:
    """Return rewards minus their group's mean, divided by the group's sample standard deviation (n - 1) if asked.

    A group of equal rewards has advantages of exactly zero, whatever rounding would leave.

    Args:
        rewards: One per rollout.
        groups: Which group each belongs to, in any order.
        normalize_by_std: Divide by the standard deviation + `STD_EPSILON`.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    advantages = torch.zeros_like(rewards)
    for indices in members.values():
        own = rewards[indices]
        if bool(own.max() > own.min()):
            scale = own.std() + STD_EPSILON if normalize_by_std else 1.0
            advantages[indices] = (own - own.mean()) / scale
    return advantages


def clipped_surrogate(
    log_probs: Float[Tensor, "batch time"],
    old_log_probs: Float[Tensor, "batch time"],
    advantages: Float[Tensor, " batch"],
    *,
    clip_low: float,
    clip_high: float,
) -> tuple[Float[Tensor, "batch time"], Bool[Tensor, "batch time"]]:
    """Return PPO's token losses -min(ratio A, clip(ratio) A), and where the clip took the gradient away."""
    ratio = (log_probs - old_log_probs).exp()
    advantage = advantages.unsqueeze(-1)  # (B,) -> (B, 1)
    free, clipped = ratio * advantage, ratio.clamp(1 - clip_low, 1 + clip_high) * advantage
    return -torch.minimum(free, clipped), (clipped < free).detach()


def k3(log_probs: Float[Tensor, "batch time"], reference: Float[Tensor, "batch time"]) -> Float[Tensor, "batch time"]:
    """Return Schulman's k3 estimate of KL(policy || reference) from sampled tokens: r - 1 - log r, never negative."""
    gap = reference - log_probs
    return gap.exp() - 1 - gap


def make_grpo_batch(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    old_log_probs: Sequence[Sequence[float]] | None,
    advantages: Sequence[float],
    coefficients: Sequence[float],
    num_update_tokens: int,
    pad_id: int,
) -> GrpoBatch:
    """Return the padded tensors of some rollouts; all sequences of tokens must be non-empty."""
    ids, mask = beside(prompts, responses, pad_id)
    own = response_mask(responses)
    old = None if old_log_probs is None else at_tokens(old_log_probs, own)
    return GrpoBatch(
        ids,
        mask,
        own,
        old,
        torch.tensor(advantages, dtype=torch.float32),
        torch.tensor(coefficients, dtype=torch.float32),
        num_update_tokens,
    )
