"""Both ways of computing the loss give one update, and which of them is taken is said with its reason."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from conftest import SMALL_LORA, make_policy, move
from resd_lightning.config import ConfigError, DistillationConfig, LoraSettings, PolicyConfig, TeacherConfig
from resd_lightning.distill.align import empty_batch, make_batch
from resd_lightning.distill.fused import fused_distillation_loss
from resd_lightning.objectives import distillation, fused_or_plain
from resd_lightning.objectives.distillation import DistillationObjective
from resd_lightning.objectives.fused_or_plain import check_fused, chooses_fused
from resd_lightning.policy.load import BaseFacts
from resd_lightning.policy.views import Policy
from resd_lightning.records import DistillBatch

BATCH = make_batch([[5, 6, 7], [8, 9]], [[40, 41, 42, 43], [44, 45]], [[90, 91, 92, 93], [94]], [0.5, 0.25], pad_id=0)
FUSED = DistillationConfig(top_k=20, loss="fused", chunk_tokens=2)
FACTS = BaseFacts(vocab_size=259, max_positions=100, architecture="", logit_transform=None)


def apart(base: Path, teacher: TeacherConfig | None = None, **config: object) -> Policy:
    """Return a policy whose student and teacher have moved, each its own way."""
    policy = make_policy(base, teacher, **config)
    move(policy.student_weights().values(), by=0.05, seed=1)
    move(policy.teacher_weights().values(), by=0.05, seed=2)
    return policy


def step(policy: Policy, config: DistillationConfig, batch: DistillBatch = BATCH) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss and the adapter's gradients."""
    policy.zero_grad()
    policy.model.train()
    loss = DistillationObjective(config).loss(policy, batch)
    loss.backward()
    if policy.teacher_config.kind != "live":
        assert all(weight.grad is None for weight in policy.teacher_weights().values())
    return loss.detach(), {name: weight.grad for name, weight in policy.student_weights().items()}


def assert_same_step(policy: Policy, config: DistillationConfig, rtol: float = 1e-4, atol: float = 1e-6) -> None:
    loss, gradients = step(policy, replace(config, loss="fused"))
    plain_loss, plain_gradients = step(policy, replace(config, loss="plain"))
    assert plain_loss.abs() > 0.01
    torch.testing.assert_close(loss, plain_loss, rtol=rtol, atol=atol)
    for name, gradient in plain_gradients.items():
        assert gradient.abs().sum() > 0, name
        torch.testing.assert_close(gradients[name], gradient, rtol=rtol, atol=atol, msg=name)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("tail", "clip_max"), [(True, None), (True, 5.0), (False, None)])
@pytest.mark.parametrize("base", ["tiny", "micro-lm"])
def test_fused_and_plain_are_one_update(
    alpha: float, tail: bool, clip_max: float | None, base: str, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = apart(tiny_base if base == "tiny" else Path(base))
    policy.model.double()
    # micro-lm is so sure of some tokens that the plain loss caps their tail: here both do.
    monkeypatch.setattr(distillation, "fused_distillation_loss", partial(fused_distillation_loss, exact_tail=False))
    assert_same_step(policy, replace(FUSED, alpha=alpha, tail=tail, clip_max=clip_max), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("kind", ["ema", "live", "initial"])
def test_fused_and_plain_are_one_update_under_every_teacher_that_both_have(kind: str, tiny_base: Path) -> None:
    assert_same_step(apart(tiny_base, TeacherConfig(kind)), FUSED)


def test_fused_and_plain_are_one_update_with_gradient_checkpointing(tiny_base: Path) -> None:
    assert_same_step(apart(tiny_base, gradient_checkpointing=True), FUSED)


def test_fused_and_plain_are_one_update_in_mixed_precision(tiny_base: Path) -> None:
    policy = apart(tiny_base, dtype="bfloat16")
    policy.precision_context = lambda: torch.autocast("cpu", dtype=torch.bfloat16)
    with policy.precision_context():
        loss, gradients = step(policy, FUSED)
        plain_loss, plain_gradients = step(policy, replace(FUSED, loss="plain"))
    torch.testing.assert_close(loss, plain_loss, rtol=1e-3, atol=0)
    one, other = (torch.cat([g.flatten() for g in g_by_name.values()]) for g_by_name in (gradients, plain_gradients))
    assert torch.cosine_similarity(one, other, dim=0) > 0.999


def test_a_filler_gives_a_zero_that_hangs_on_the_graph(tiny_base: Path) -> None:
    loss, gradients = step(apart(tiny_base), FUSED, empty_batch(0))
    assert loss == 0
    assert all(not gradient.any() for gradient in gradients.values())


def test_the_fused_loss_never_makes_logits_in_the_model(tiny_base: Path) -> None:
    policy = apart(tiny_base)
    objective = DistillationObjective(FUSED)
    objective.prepare(policy)
    policy.model.get_base_model().lm_head.register_forward_hook(lambda *_: pytest.fail("the head was called"))
    objective.loss(policy, BATCH).backward()


# Which one, and why


def reason(caplog: pytest.LogCaptureFixture, config: DistillationConfig, policy: Policy) -> str:
    """Return the one line that is said of a choice, and check that it is what was done."""
    caplog.clear()
    with caplog.at_level(logging.INFO, logger=fused_or_plain.__name__):
        is_fused = chooses_fused(config, policy)
    (record,) = caplog.records
    assert (": fused" in record.getMessage()) == is_fused
    return record.getMessage()


def test_auto_is_fused_from_a_large_vocabulary_on(
    tiny_base: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy(tiny_base)
    auto = DistillationConfig(top_k=20)
    assert reason(caplog, auto, policy) == "model.distillation.loss auto: plain, as a vocabulary of 259 is small"
    monkeypatch.setattr(fused_or_plain, "FUSED_FROM_VOCAB", 259)
    assert reason(caplog, auto, policy) == "model.distillation.loss auto: fused, 256 tokens at a time"
    plain = replace(auto, loss="plain")
    assert reason(caplog, plain, policy) == "model.distillation.loss plain: plain, as asked for"


OBSTACLES = [
    (
        {"top_k": None},
        "ema",
        SMALL := LoraSettings(rank=2, alpha=4),
        "model.distillation.top_k null compares the whole",
    ),
    ({}, "trust_region", SMALL_LORA, "model.teacher.kind trust_region mixes whole logits"),
    ({}, "ema", None, "model.policy.lora null trains the output head"),
]


@pytest.mark.parametrize(("settings", "kind", "lora", "said"), OBSTACLES)
def test_what_the_fused_loss_cannot_do_is_plain_or_refused_by_name(
    settings: dict[str, object],
    kind: str,
    lora: LoraSettings | None,
    said: str,
    tiny_base: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    teacher = TeacherConfig(kind)
    policy = make_policy(tiny_base, teacher, lora=lora)
    config = DistillationConfig(**({"top_k": 20} | settings))
    assert f"auto: plain, as {said}" in reason(caplog, config, policy)
    fused, policy_config = replace(config, loss="fused"), PolicyConfig(str(tiny_base), dtype="float32", lora=lora)
    with pytest.raises(ConfigError, match=said):
        chooses_fused(fused, policy)
    with pytest.raises(ConfigError, match=f"model.distillation.loss fused can't be: {said}"):
        check_fused(fused, teacher, policy_config, FACTS)
    check_fused(config, teacher, policy_config, FACTS)


def test_a_base_that_alters_its_logits_is_refused_before_its_weights_are_read() -> None:
    facts = replace(FACTS, logit_transform="final_logit_softcapping 30.0")
    check_fused(replace(FUSED, loss="auto"), TeacherConfig(), PolicyConfig("base"), facts)
    check_fused(FUSED, TeacherConfig(), PolicyConfig("base"), FACTS)
    with pytest.raises(
        ConfigError, match=r"fused can.t be: the base has final_logit_softcapping 30\.0; set it to auto or"
    ):
        check_fused(FUSED, TeacherConfig(), PolicyConfig("base"), facts)


def test_an_adapted_head_is_plain_or_refused(tiny_base: Path, caplog: pytest.LogCaptureFixture) -> None:
    policy = make_policy(tiny_base, lora=LoraSettings(rank=2, alpha=4, target_modules=["q_proj", "lm_head"]))
    assert "auto: plain, as the output head is a Linear: adapted" in reason(
        caplog, DistillationConfig(top_k=20), policy
    )
    with pytest.raises(ConfigError, match="loss fused can't be: the output head is a Linear: adapted"):
        chooses_fused(FUSED, policy)
