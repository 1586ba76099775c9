from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from resd_lightning.distill.divergence import distillation_loss
from resd_lightning.distill.fused import fused_distillation_loss, token_log_probs

BATCH, TIME, HIDDEN, VOCAB = 3, 5, 6, 23
CLIPS = ((None, None), (0.2, None), (0.2, 5.0), (None, 1.5))
MASK = torch.tensor([[True, True, True, False, False], [False, True, False, True, True], [False] * 5])


def random_inputs(dtype=torch.float64, seed=0):
    """Student and teacher hidden states, and a head for both."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((BATCH, TIME, HIDDEN), (BATCH, TIME, HIDDEN), (VOCAB, HIDDEN))
    student, teacher, head = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return student.to(dtype).requires_grad_(), teacher.to(dtype), head.to(dtype)


def of_logits(student, teacher, **settings):
    """The fused loss of given logits: their head is the identity."""
    head = torch.eye(student.shape[-1], dtype=student.dtype)
    return fused_distillation_loss(student, head, teacher, head, torch.ones(student.shape[:2]).bool(), **settings)


def one_token(*probs, dtype=torch.float64):
    return torch.tensor(probs, dtype=torch.float64).log().view(1, 1, -1).to(dtype)


def assert_same_loss(fused, plain, student, atol):
    torch.testing.assert_close(fused.loss, plain.loss, rtol=0, atol=atol)
    torch.testing.assert_close(fused.per_token, plain.per_token, rtol=0, atol=atol)
    if plain.clipped_share is not None:  # not where the plain loss compares the whole vocabulary
        torch.testing.assert_close(fused.clipped_share, plain.clipped_share, rtol=0, atol=atol)
        torch.testing.assert_close(fused.clipped_mass, plain.clipped_mass, rtol=0, atol=atol)
    # Another loss for each token, so that the gradients of single tokens can't make up for each other.
    factors = torch.linspace(0.5, 2.0, BATCH * TIME, dtype=fused.loss.dtype).view(BATCH, TIME)
    gradients = [
        torch.autograd.grad((loss.per_token * factors).sum() + loss.loss, student)[0] for loss in (fused, plain)
    ]
    assert gradients[0].abs().max() > 1e-3
    torch.testing.assert_close(*gradients, rtol=0, atol=atol)


# Agreement with the definition.


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize(("clip_min", "clip_max"), CLIPS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("exact_tail", [True, False])
def test_fused_loss_is_the_plain_loss_in_value_per_token_and_gradient(
    alpha, tail, clip_min, clip_max, weighted, exact_tail
):
    student, teacher, head = random_inputs()
    weights = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64) if weighted else None
    settings = {
        "alpha": alpha,
        "top_k": 5,
        "tail": tail,
        "clip_min": clip_min,
        "clip_max": clip_max,
        "weights": weights,
    }
    plain = distillation_loss(student @ head.T, teacher @ head.T, MASK, **settings)
    fused = fused_distillation_loss(
        student, head, teacher, head, MASK, **settings, chunk_tokens=4, exact_tail=exact_tail
    )
    assert_same_loss(fused, plain, student, atol=1e-10)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("tail", [True, False])
def test_gradient_equals_finite_differences(alpha, tail):
    student, teacher, head = random_inputs()

    def loss(hidden):
        # No clipping: its bounds follow the student without gradient, so finite differences see another function.
        settings = {"alpha": alpha, "top_k": 4, "tail": tail, "chunk_tokens": 3}
        return fused_distillation_loss(hidden, head, teacher, head, MASK, **settings).per_token

    assert torch.autograd.gradcheck(loss, (student,))


def test_reverse_kl_of_top_one_and_tail_by_hand():
    expected = 0.7 * math.log(0.7 / 0.4) + 0.3 * math.log(0.3 / 0.6)
    loss = of_logits(one_token(0.2, 0.7, 0.1), one_token(0.5, 0.4, 0.1), alpha=1.0, top_k=1).loss
    assert loss.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("tail", [True, False])
def test_top_k_of_the_whole_vocabulary_is_the_full_divergence(alpha, tail):
    student, teacher, head = random_inputs()
    plain = distillation_loss(student @ head.T, teacher @ head.T, MASK, alpha=alpha)
    fused = fused_distillation_loss(student, head, teacher, head, MASK, alpha=alpha, top_k=VOCAB, tail=tail)
    assert_same_loss(fused, plain, student, atol=1e-12)


def test_student_and_teacher_may_have_heads_of_different_widths():
    student, _, head = random_inputs()
    teacher = torch.randn(BATCH, TIME, 4, dtype=torch.float64)
    teacher_head = torch.randn(VOCAB, 4, dtype=torch.float64)
    settings = {"alpha": 0.5, "top_k": 5, "clip_min": 0.2}
    plain = distillation_loss(student @ head.T, teacher @ teacher_head.T, MASK, **settings)
    assert_same_loss(
        fused_distillation_loss(student, head, teacher, teacher_head, MASK, **settings), plain, student, atol=1e-10
    )


@pytest.mark.parametrize("chunk_tokens", [1, 2, 5, 1000])
@pytest.mark.parametrize("tail", [True, False])
def test_the_chunks_size_changes_nothing(chunk_tokens, tail):
    student, teacher, head = random_inputs()
    settings = {"alpha": 0.5, "top_k": 5, "tail": tail, "clip_min": 0.2}
    losses = [
        fused_distillation_loss(student, head, teacher, head, MASK, **settings, chunk_tokens=size)
        for size in (chunk_tokens, 3)
    ]
    assert_same_loss(*losses, student, atol=1e-13)


# Memory.


class Largest(TorchDispatchMode):
    """Notes the largest result of any operation."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.numel = max(self.numel, *sizes, 0)
        return result


@pytest.mark.parametrize("tail", [True, False])
def test_no_tensor_is_larger_than_a_chunks_logits(tail):
    vocab, tokens, chunk, top_k = 500, 64, 8, 4
    student, teacher = torch.randn(2, 1, tokens, 3)
    student.requires_grad_()
    head, mask = torch.randn(vocab, 3), torch.ones(1, tokens, dtype=torch.bool)
    with Largest() as fused:
        loss = fused_distillation_loss(
            student, head, teacher, head, mask, alpha=1.0, top_k=top_k, tail=tail, chunk_tokens=chunk
        ).loss
        loss.backward()
    assert fused.numel == chunk * vocab
    with Largest() as plain:
        distillation_loss(student @ head.T, teacher @ head.T, mask, alpha=1.0, top_k=top_k, tail=tail).loss.backward()
    assert plain.numel == tokens * vocab  # the measure sees what it should


# Precision.


@pytest.mark.parametrize("tail_mass", [1e-4, 1e-6, 1e-9, 1e-20])
def test_a_small_tail_is_exact_in_fp32_and_keeps_its_gradient(tail_mass):
    # Forward KL to a teacher with half of its mass in the tail: the loss is about half the student's log tail.
    probs, teacher_probs = (0.6 - tail_mass / 2, 0.4 - tail_mass / 2, tail_mass * 0.75, tail_mass * 0.25), [0.25] * 4
    teacher = one_token(*teacher_probs)
    exact = one_token(*probs)[0, 0]
    expected = 0.25 * (math.log(0.25) - exact[0]) + 0.25 * (math.log(0.25) - exact[1])
    expected = expected + 0.5 * (math.log(0.5) - exact[2:].logsumexp(0))
    student = one_token(*probs, dtype=torch.float32).requires_grad_()
    loss = of_logits(student, teacher.float(), alpha=0.0, top_k=2).loss
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=2e-6)
    # d loss / d logit = student - teacher; within the tail, in proportion to the student
    slope = [0.6 - 0.25, 0.4 - 0.25, -0.5 * 0.75, -0.5 * 0.25]
    torch.testing.assert_close(student.grad[0, 0], torch.tensor(slope), rtol=0, atol=2e-4)
    if tail_mass < 1e-7:
        capped = of_logits(student, teacher.float(), alpha=0.0, top_k=2, exact_tail=False).loss
        assert abs(capped.item() - expected.item()) > 1  # what the exact tail is for


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_a_tail_that_vanishes_in_fp32_leaves_loss_and_gradient_finite(alpha):
    student = torch.tensor([[[200.0, 1.0, -150.0, -160.0]]]).requires_grad_()
    teacher = torch.tensor([[[-150.0, 1.0, 200.0, -160.0]]])
    result = of_logits(student, teacher, alpha=alpha, top_k=2)
    result.loss.backward()
    assert result.loss.isfinite()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_ends_with_the_products(dtype):
    student, teacher, head = random_inputs(dtype)
    settings = {"alpha": 1.0, "top_k": 5, "clip_min": 0.2}
    plain = distillation_loss(student @ head.T, teacher @ head.T, MASK, **settings)
    fused = fused_distillation_loss(student, head, teacher, head, MASK, **settings)
    assert fused.loss.dtype == fused.per_token.dtype == torch.float32
    torch.testing.assert_close(fused.per_token, plain.per_token, rtol=1e-4, atol=1e-5)
    gradients = [torch.autograd.grad(result.loss, student)[0] for result in (fused, plain)]
    assert gradients[0].dtype == dtype
    torch.testing.assert_close(*gradients, rtol=0.05, atol=0.003)


def test_autocast_sets_the_precision_of_the_products():
    student, teacher, head = random_inputs(torch.float32)
    settings = {"alpha": 1.0, "top_k": 5}
    exact = fused_distillation_loss(student, head, teacher, head, MASK, **settings)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = distillation_loss(student @ head.T, teacher @ head.T, MASK, **settings)
        fused = fused_distillation_loss(student, head, teacher, head, MASK, **settings)
    torch.testing.assert_close(fused.per_token, plain.per_token, rtol=1e-4, atol=1e-5)
    assert (fused.per_token - exact.per_token).abs().max() > 1e-4
    gradients = [torch.autograd.grad(result.loss, student)[0] for result in (fused, plain)]
    torch.testing.assert_close(*gradients, rtol=0.05, atol=0.003)


def test_hidden_states_in_half_precision_under_an_fp32_head_are_computed_in_fp32():
    student, teacher, head = random_inputs(torch.bfloat16)
    settings = {"alpha": 1.0, "top_k": 5}
    mixed = fused_distillation_loss(student, head.float(), teacher, head.float(), MASK, **settings)
    whole = fused_distillation_loss(student.float(), head.float(), teacher.float(), head.float(), MASK, **settings)
    assert torch.equal(mixed.per_token, whole.per_token)


# Masks and gradients.


@pytest.mark.parametrize("tail", [True, False])
def test_garbage_at_masked_positions_reaches_neither_loss_nor_gradient(tail):
    student, teacher, head = random_inputs()
    with torch.no_grad():
        student[~MASK] = math.nan
        teacher[~MASK] = math.inf
    result = fused_distillation_loss(student, head, teacher, head, MASK, alpha=0.5, top_k=3, tail=tail)
    (result.loss + result.per_token.sum()).backward()
    assert result.per_token.isfinite().all()
    assert not result.per_token[~MASK].any()
    assert student.grad[MASK].abs().sum(-1).min() > 0
    assert not student.grad[~MASK].any()


@pytest.mark.parametrize("tail", [True, False])
def test_an_empty_mask_gives_a_zero_loss_on_the_graph(tail):
    student, teacher, head = random_inputs()
    mask = torch.zeros(BATCH, TIME, dtype=torch.bool)
    weights = torch.ones(BATCH, dtype=torch.float64)
    result = fused_distillation_loss(student, head, teacher, head, mask, alpha=1.0, top_k=3, tail=tail, weights=weights)
    result.loss.backward()
    assert result.loss.item() == 0
    assert torch.equal(result.per_token, torch.zeros(BATCH, TIME, dtype=torch.float64))
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_the_teacher_receives_no_gradient():
    student, teacher, head = random_inputs()
    teacher.requires_grad_()
    fused_distillation_loss(student, head, teacher, head.clone(), MASK, alpha=0.5, top_k=3).loss.backward()
    assert student.grad.abs().max() > 0
    assert teacher.grad is None


def test_without_gradient_the_loss_is_the_same():
    student, teacher, head = random_inputs()
    settings = {"alpha": 0.5, "top_k": 3}
    with torch.no_grad():
        quiet = fused_distillation_loss(student, head, teacher, head, MASK, **settings).loss
    assert not quiet.requires_grad
    assert quiet == fused_distillation_loss(student, head, teacher, head, MASK, **settings).loss


# Log-probabilities of tokens.


def test_token_log_probs_are_those_of_the_whole_softmax_with_their_gradient():
    student, _, head = random_inputs()
    ids = torch.randint(VOCAB, (BATCH, TIME), generator=torch.Generator().manual_seed(3))
    right = (student @ head.T).log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1) * MASK
    seen = token_log_probs(student, head, ids, MASK, chunk_tokens=4)
    torch.testing.assert_close(seen, right, rtol=0, atol=1e-12)
    factors = torch.randn(BATCH, TIME, dtype=torch.float64)
    gradients = [torch.autograd.grad((values * factors).sum(), student)[0] for values in (seen, right)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)
    torch.testing.assert_close(token_log_probs(student, head, ids, MASK, chunk_tokens=1), seen, rtol=0, atol=1e-12)


def test_token_log_probs_read_nothing_outside_the_mask():
    student, _, head = random_inputs()
    ids = torch.full((BATCH, TIME), 7).masked_fill(~MASK, -100)
    with torch.no_grad():
        student[~MASK] = math.nan
    log_probs = token_log_probs(student, head, ids, MASK)
    log_probs.sum().backward()
    assert (log_probs[MASK] < 0).all()
    assert not log_probs[~MASK].any()
    assert not student.grad[~MASK].any()
    nothing = token_log_probs(student, head, ids, torch.zeros_like(MASK))
    assert nothing.requires_grad
    assert not nothing.any()


def test_token_log_probs_of_a_sure_token_are_exact_in_fp32():
    logits = torch.tensor([[[30.0, 10.0, 9.0]]])
    exact = logits.double().log_softmax(-1)[0, 0]
    for token in range(3):
        seen = token_log_probs(logits, torch.eye(3), torch.tensor([[token]]), torch.tensor([[True]]))
        assert seen.item() == pytest.approx(exact[token].item(), rel=1e-6, abs=1e-8)


# Errors.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": None}, r"distillation\.top_k must be set for the fused loss, got None"),
        ({"top_k": 24}, r"distillation\.top_k must be at most the vocabulary's 23 tokens, got 24"),
        ({"top_k": 1, "tail": False}, r"distillation\.top_k must be at least 2 where distillation\.tail is false"),
        ({"alpha": 1.5}, r"distillation\.alpha must be in \[0, 1\], got 1\.5"),
        ({"clip_min": 0.0}, r"distillation\.clip_min must be positive"),
        ({"chunk_tokens": 0}, r"chunk_tokens must be at least 1, got 0"),
        ({"weights": torch.ones(2)}, r"weights must be \(3,\), got \(2,\)"),
        ({"student_head": torch.ones(VOCAB, 4)}, r"student_hidden must be \(3, 5, 4\), got \(3, 5, 6\)"),
        ({"student_head": torch.ones(HIDDEN)}, r"student_head must be \(vocab, hidden\), got \(6,\)"),
        ({"teacher_hidden": torch.ones(3, 4, HIDDEN)}, r"teacher_hidden must be \(3, 5, 6\), got \(3, 4, 6\)"),
        ({"teacher_head": torch.ones(9, HIDDEN)}, r"teacher_head must have the student's 23 rows, got 9"),
        ({"mask": torch.ones(3, 5)}, r"mask must be torch\.bool of \(batch, time\), got torch\.float32 of \(3, 5\)"),
        ({"student_head": torch.ones(VOCAB, HIDDEN, requires_grad=True)}, r"student_head requires a gradient"),
    ],
)
def test_what_cannot_be_is_refused_by_name(settings, message):
    student, teacher, head = random_inputs(torch.float32)
    right = {"student_hidden": student, "student_head": head, "teacher_hidden": teacher, "teacher_head": head}
    with pytest.raises(ValueError, match=message):
        fused_distillation_loss(**(right | {"mask": MASK, "alpha": 1.0, "top_k": 3} | settings))


def test_token_log_probs_refuse_what_does_not_fit():
    student, _, head = random_inputs()
    ids = torch.zeros(BATCH, TIME, dtype=torch.long)
    with pytest.raises(ValueError, match=r"token_ids must be \(3, 5\), got \(3, 4\)"):
        token_log_probs(student, head, ids[:, :4], MASK)
    with pytest.raises(ValueError, match="head requires a gradient"):
        token_log_probs(student, head.requires_grad_(), ids, MASK)
