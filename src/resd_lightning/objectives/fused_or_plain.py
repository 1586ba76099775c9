"""Chooses between the fused and the plain loss, and says which it is and why."""

from __future__ import annotations

import logging
from typing import Literal, cast

from resd_lightning.config import ConfigError, DistillationConfig, PolicyConfig, TeacherConfig, TeacherKind
from resd_lightning.policy.head import head_obstacle
from resd_lightning.policy.load import BaseFacts
from resd_lightning.policy.views import Policy

logger = logging.getLogger(__name__)

FUSED_FROM_VOCAB = 4096
"""Vocabulary from which `auto` is fused. Below about 2,000 the plain loss is the faster one on a CPU."""
HEAD_IS_TRAINED = "model.policy.lora null trains the output head"


def check_fused(config: DistillationConfig, teacher: TeacherConfig, policy: PolicyConfig, facts: BaseFacts) -> None:
    """Refuse a fused loss that can't be, as far as that shows before any weight is read.

    Raises:
        ConfigError: `model.distillation.loss` is fused; the text says what it can't go with.
    """
    obstacle = _obstacle_in_settings(config, teacher.kind, policy.lora is not None)
    if obstacle is None and facts.logit_transform is not None:
        obstacle = f"the base has {facts.logit_transform}"
    if config.loss == "fused" and obstacle is not None:
        raise _refused(obstacle)


def chooses_fused(config: DistillationConfig, policy: Policy) -> bool:
    """Return whether the loss is fused: where it is asked for, or where it can be and the vocabulary is large.

    Raises:
        ConfigError: It is asked for and can't be; the text says why.
    """
    obstacle = None if config.loss == "plain" else _obstacle(config, policy)
    if config.loss == "fused" and obstacle is not None:
        raise _refused(obstacle)
    reason = _why_plain(config.loss, obstacle, _vocab_size(policy))
    if reason is None:
        logger.info("model.distillation.loss %s: fused, %d tokens at a time", config.loss, config.chunk_tokens)
    else:
        logger.info("model.distillation.loss %s: plain, as %s", config.loss, reason)
    return reason is None


def chooses_fused_log_probs(policy: Policy) -> bool:
    """Return whether GRPO's log-probs are fused: where they can be and the vocabulary is large."""
    obstacle = head_obstacle(policy) if policy.has_adapters else HEAD_IS_TRAINED
    reason = _why_plain("auto", obstacle, _vocab_size(policy))
    logger.info("model.objective grpo: log-probs %s", "fused" if reason is None else f"plain, as {reason}")
    return reason is None


def expects_fused(
    config: DistillationConfig, teacher: TeacherKind, has_adapters: bool, head_obstacle: str | None, vocab_size: int
) -> bool:
    """Return what `chooses_fused` will say, from what shows before any weight is read."""
    obstacle = _obstacle_in_settings(config, teacher, has_adapters) or head_obstacle
    return _why_plain(config.loss, obstacle, vocab_size) is None


def expects_fused_log_probs(has_adapters: bool, head_obstacle: str | None, vocab_size: int) -> bool:
    """Return what `chooses_fused_log_probs` will say, from what shows before any weight is read."""
    return _why_plain("auto", head_obstacle if has_adapters else HEAD_IS_TRAINED, vocab_size) is None


def _why_plain(asked: Literal["auto", "fused", "plain"], obstacle: str | None, vocab_size: int) -> str | None:
    """Return the reason for making all logits; None where they are made in chunks."""
    if asked == "plain":
        return "asked for"
    if obstacle is None and asked == "auto" and vocab_size < FUSED_FROM_VOCAB:
        return f"a vocabulary of {vocab_size} is small"
    return obstacle


def _vocab_size(policy: Policy) -> int:
    return cast("int", policy.model.config.get_text_config().vocab_size)


def _obstacle(config: DistillationConfig, policy: Policy) -> str | None:
    in_settings = _obstacle_in_settings(config, policy.teacher_config.kind, policy.has_adapters)
    return in_settings or head_obstacle(policy)


def _obstacle_in_settings(config: DistillationConfig, teacher: TeacherKind, has_adapters: bool) -> str | None:
    if config.top_k is None:
        return "model.distillation.top_k null compares the whole vocabulary"
    if teacher == "trust_region":
        return "model.teacher.kind trust_region mixes whole logits"
    if not has_adapters:
        return HEAD_IS_TRAINED
    return None


def _refused(obstacle: str) -> ConfigError:
    return ConfigError(f"model.distillation.loss fused can't be: {obstacle}; set it to auto or plain")
