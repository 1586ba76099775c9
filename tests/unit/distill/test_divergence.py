from __future__ import annotations

import math

import pytest
import torch

from resd_lightning.distill.divergence import (
    append_tail,
    check_divergence_settings,
    check_loss_inputs,
    clip_teacher,
    distillation_loss,
    divergence,
    divergence_name,
    topk_log_probs,
)

ALPHAS = (0.0, 0.3, 0.5, 1.0)


def random_logits(batch=2, time=3, vocab=7, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(2, batch, time, vocab, generator=generator, dtype=dtype)


def all_tokens(logits):
    return torch.ones(logits.shape[:2], dtype=torch.bool)


def one_token(*probs):
    """Logits (1, 1, vocab) of one distribution."""
    return torch.tensor(probs, dtype=torch.float64).log().view(1, 1, -1)


def hand_loss(student, teacher, **settings):
    return distillation_loss(student, teacher, all_tokens(student), **settings).loss.item()


# Hand-computed values, student (1/2, 1/2) and teacher (3/4, 1/4).


def test_forward_kl_of_two_tokens_by_hand():
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert hand_loss(one_token(0.5, 0.5), one_token(0.75, 0.25), alpha=0.0) == pytest.approx(expected, abs=1e-12)


def test_reverse_kl_of_two_tokens_by_hand():
    expected = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert hand_loss(one_token(0.5, 0.5), one_token(0.75, 0.25), alpha=1.0) == pytest.approx(expected, abs=1e-12)


def test_jsd_of_two_tokens_by_hand():
    m0, m1 = 0.625, 0.375
    student = 0.5 * math.log(0.5 / m0) + 0.5 * math.log(0.5 / m1)
    teacher = 0.75 * math.log(0.75 / m0) + 0.25 * math.log(0.25 / m1)
    expected = 0.5 * student + 0.5 * teacher
    assert hand_loss(one_token(0.5, 0.5), one_token(0.75, 0.25), alpha=0.5) == pytest.approx(expected, abs=1e-12)


def test_generalised_jsd_mixes_one_minus_alpha_of_the_student_by_hand():
    m0, m1 = 0.75 * 0.5 + 0.25 * 0.75, 0.75 * 0.5 + 0.25 * 0.25
    student = 0.5 * math.log(0.5 / m0) + 0.5 * math.log(0.5 / m1)
    teacher = 0.75 * math.log(0.75 / m0) + 0.25 * math.log(0.25 / m1)
    expected = 0.75 * student + 0.25 * teacher
    assert hand_loss(one_token(0.5, 0.5), one_token(0.75, 0.25), alpha=0.25) == pytest.approx(expected, abs=1e-12)


def test_top_one_with_tail_compares_the_students_best_token_and_the_rest_by_hand():
    student, teacher = one_token(0.2, 0.7, 0.1), one_token(0.5, 0.4, 0.1)
    expected = 0.7 * math.log(0.7 / 0.4) + 0.3 * math.log(0.3 / 0.6)
    assert hand_loss(student, teacher, alpha=1.0, top_k=1) == pytest.approx(expected, abs=1e-12)


def test_top_two_without_tail_renormalises_both_sides_by_hand():
    student, teacher = one_token(0.2, 0.7, 0.1), one_token(0.2, 0.3, 0.5)
    p, q = (0.2 / 0.9, 0.7 / 0.9), (0.4, 0.6)
    expected = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert hand_loss(student, teacher, alpha=1.0, top_k=2, tail=False) == pytest.approx(expected, abs=1e-12)


def test_clip_min_floors_the_ratio_and_clip_max_caps_it_by_hand():
    student, teacher = one_token(0.9, 0.1), one_token(0.09, 0.91)  # ratios 0.1 and 9.1
    expected = 0.9 * -math.log(0.2) + 0.1 * -math.log(5.0)
    loss = hand_loss(student, teacher, alpha=1.0, clip_min=0.2, clip_max=5.0)
    assert loss == pytest.approx(expected, abs=1e-12)


def test_clipping_reaches_the_tail_bucket_by_hand():
    student, teacher = one_token(0.6, 0.3, 0.1), one_token(0.99, 0.005, 0.005)  # tail ratio 0.01 / 0.4
    expected = 0.6 * math.log(0.6 / 0.99) + 0.4 * -math.log(0.2)
    assert hand_loss(student, teacher, alpha=1.0, top_k=1, clip_min=0.2) == pytest.approx(expected, abs=1e-12)


def test_clipped_ratios_are_counted_per_token_and_weighed_by_the_student_by_hand():
    # ratios 0.1, 1 and 5.5; then 1, 1 and 1; then padding
    student = torch.tensor([[[0.7, 0.2, 0.1], [0.2, 0.3, 0.5], [0.1, 0.1, 0.8]]], dtype=torch.float64).log()
    teacher = torch.tensor([[[0.07, 0.2, 0.73], [0.2, 0.3, 0.5], [0.8, 0.1, 0.1]]], dtype=torch.float64).log()
    mask = torch.tensor([[True, True, False]])
    weights = torch.tensor([3.0], dtype=torch.float64)  # weighs the loss, not the count
    # Buckets: the two likeliest tokens and the third.
    floored = distillation_loss(student, teacher, mask, alpha=1.0, top_k=2, clip_min=0.2, weights=weights)
    torch.testing.assert_close(floored.clipped_share.tolist(), [[1 / 3, 0.0, 0.0]])
    torch.testing.assert_close(floored.clipped_mass.tolist(), [[0.7, 0.0, 0.0]])
    both = distillation_loss(student, teacher, mask, alpha=0.5, top_k=2, clip_min=0.2, clip_max=5.0)
    torch.testing.assert_close(both.clipped_mass.tolist(), [[0.8, 0.0, 0.0]])
    # Buckets: the student's likeliest token and the rest, 0.93 to 0.3.
    top_one = distillation_loss(student, teacher, mask, alpha=1.0, top_k=1, clip_max=3.0)
    torch.testing.assert_close(top_one.clipped_share.tolist(), [[0.5, 0.0, 0.0]])
    torch.testing.assert_close(top_one.clipped_mass.tolist(), [[0.3, 0.0, 0.0]])
    free = distillation_loss(student, teacher, mask, alpha=1.0, top_k=2)
    assert not free.clipped_share.any()
    assert not free.clipped_mass.any()
    whole = distillation_loss(student, teacher, mask, alpha=1.0, clip_min=0.2)
    assert whole.clipped_share is whole.clipped_mass is None


# Identities.


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize(("top_k", "tail"), [(None, True), (3, True), (3, False)])
def test_a_student_equal_to_its_teacher_has_zero_loss_and_zero_gradient(alpha, top_k, tail):
    student = random_logits()[0].requires_grad_()
    result = distillation_loss(
        student, student, all_tokens(student), alpha=alpha, top_k=top_k, tail=tail, clip_min=0.2, clip_max=5.0
    )
    result.loss.backward()
    assert result.per_token.abs().max() < 1e-12
    assert student.grad.abs().max() < 1e-9


def test_jsd_is_symmetric_at_one_half():
    student, teacher = random_logits()
    swapped = hand_loss(teacher, student, alpha=0.5)
    assert hand_loss(student, teacher, alpha=0.5) == pytest.approx(swapped, abs=1e-12)
    assert hand_loss(student, teacher, alpha=0.3) != pytest.approx(hand_loss(teacher, student, alpha=0.3), abs=1e-3)


def test_swapping_sides_and_alpha_leaves_the_generalised_jsd():
    student, teacher = random_logits()
    assert hand_loss(student, teacher, alpha=0.3) == pytest.approx(hand_loss(teacher, student, alpha=0.7), abs=1e-12)


@pytest.mark.parametrize(("alpha", "limit"), [(1e-6, 0.0), (1 - 1e-6, 1.0)])
def test_generalised_jsd_near_an_end_is_that_ends_divergence_times_its_distance(alpha, limit):
    student, teacher = random_logits()
    scaled = hand_loss(student, teacher, alpha=alpha) / min(alpha, 1 - alpha)
    assert scaled == pytest.approx(hand_loss(student, teacher, alpha=limit), rel=1e-4)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_divergence_is_positive_between_different_distributions(alpha):
    student, teacher = random_logits()
    assert distillation_loss(student, teacher, all_tokens(student), alpha=alpha).per_token.min() > 0


@pytest.mark.parametrize("alpha", ALPHAS)
def test_top_k_of_the_whole_vocabulary_equals_no_top_k(alpha):
    student, teacher = random_logits()
    full = hand_loss(student, teacher, alpha=alpha)
    assert hand_loss(student, teacher, alpha=alpha, top_k=7, tail=False) == pytest.approx(full, abs=1e-12)
    # The tail is capped at 1e-7 on both sides there, which adds next to nothing.
    assert hand_loss(student, teacher, alpha=alpha, top_k=7, tail=True) == pytest.approx(full, abs=1e-6)


def test_top_k_with_tail_is_a_distribution_and_without_tail_too():
    student, teacher = random_logits()
    for tail, buckets in ((True, 4), (False, 3)):
        for logp in topk_log_probs(student, teacher, 3, tail):
            assert logp.shape == (2, 3, buckets)
            torch.testing.assert_close(logp.exp().sum(-1), torch.ones(2, 3, dtype=torch.float64))


def test_top_k_are_the_students_tokens_on_both_sides():
    student, teacher = one_token(0.1, 0.2, 0.7), one_token(0.8, 0.15, 0.05)
    student_logp, teacher_logp = topk_log_probs(student, teacher, 1, True)
    torch.testing.assert_close(student_logp.exp().flatten(), torch.tensor([0.7, 0.3], dtype=torch.float64))
    torch.testing.assert_close(teacher_logp.exp().flatten(), torch.tensor([0.05, 0.95], dtype=torch.float64))


def test_merging_tokens_into_a_tail_never_raises_a_divergence():
    student, teacher = random_logits()
    mask = all_tokens(student)
    for alpha in ALPHAS:
        full = distillation_loss(student, teacher, mask, alpha=alpha).per_token
        merged = distillation_loss(student, teacher, mask, alpha=alpha, top_k=2).per_token
        assert (merged <= full + 1e-12).all()


def test_tail_holds_what_the_top_tokens_leave():
    top = torch.tensor([0.5, 0.25, 0.125], dtype=torch.float64).log()
    assert append_tail(top)[-1].item() == pytest.approx(math.log(0.125), abs=1e-12)


def test_tail_stays_finite_where_the_top_tokens_hold_all_the_mass():
    top = torch.tensor([0.0, -200.0], requires_grad=True)
    tail = append_tail(top)[-1]
    tail.backward()
    assert tail.item() == pytest.approx(math.log(1e-7), rel=1e-6)
    assert torch.equal(top.grad, torch.zeros(2))


def test_bounds_that_nothing_reaches_change_nothing():
    student, teacher = random_logits()
    for alpha in ALPHAS:
        clipped = hand_loss(student, teacher, alpha=alpha, top_k=3, clip_min=1e-9, clip_max=1e9)
        assert clipped == hand_loss(student, teacher, alpha=alpha, top_k=3)


def test_clip_bounds_carry_no_gradient():
    student_logp = one_token(0.5, 0.5).requires_grad_()
    clipped = clip_teacher(one_token(0.01, 0.99), student_logp, 0.2, 1.5)
    assert not clipped.requires_grad
    torch.testing.assert_close(clipped.exp().flatten(), torch.tensor([0.1, 0.75], dtype=torch.float64))


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize(("top_k", "tail"), [(None, True), (2, True), (2, False)])
def test_gradient_equals_finite_differences(alpha, top_k, tail):
    student, teacher = random_logits(vocab=4)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    weights = torch.tensor([0.5, 2.0], dtype=torch.float64)

    def loss(logits):
        # No clipping: its bounds follow the student without gradient, so finite differences see another function.
        return distillation_loss(logits, teacher, mask, alpha=alpha, top_k=top_k, tail=tail, weights=weights).loss

    assert torch.autograd.gradcheck(loss, (student.requires_grad_(),))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_gradient_with_clipping_treats_the_clipped_teacher_as_a_constant(alpha):
    student, teacher = random_logits(vocab=4)
    frozen = student.clone()

    def loss(logits):
        logp, teacher_logp = topk_log_probs(logits, teacher, 2, True)
        bound = topk_log_probs(frozen, teacher, 2, True)[0]
        return divergence(logp, clip_teacher(teacher_logp, bound, 0.5, 2.0), alpha).mean()

    assert torch.autograd.gradcheck(loss, (student.requires_grad_(),))
    (expected,) = torch.autograd.grad(loss(student), student)
    settings = {"alpha": alpha, "top_k": 2, "clip_min": 0.5, "clip_max": 2.0}
    (actual,) = torch.autograd.grad(distillation_loss(student, teacher, all_tokens(student), **settings).loss, student)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_the_teacher_receives_no_gradient():
    student, teacher = (logits.clone().requires_grad_() for logits in random_logits())
    distillation_loss(student, teacher, all_tokens(student), alpha=0.5, top_k=3).loss.backward()
    assert student.grad.abs().max() > 0
    assert teacher.grad is None


@pytest.mark.parametrize("alpha", ALPHAS)
def test_float32_agrees_with_float64(alpha):
    student, teacher = random_logits(vocab=50)
    settings = {"alpha": alpha, "top_k": 10, "clip_min": 0.2}
    exact = hand_loss(student, teacher, **settings)
    assert hand_loss(student.float(), teacher.float(), **settings) == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_in_float32(dtype):
    student, teacher = random_logits().to(dtype)
    result = distillation_loss(student, teacher, all_tokens(student), alpha=1.0, top_k=3)
    assert result.loss.dtype == result.per_token.dtype == torch.float32
    assert result.loss.item() == hand_loss(student.float(), teacher.float(), alpha=1.0, top_k=3)


# Mask, weights and reduction.


def test_loss_is_the_mean_of_the_weighted_token_losses_over_the_mask():
    student, teacher = random_logits()
    mask = torch.tensor([[True, False, True], [False, True, False]])
    weights = torch.tensor([0.5, 3.0], dtype=torch.float64)
    plain = distillation_loss(student, teacher, all_tokens(student), alpha=1.0).per_token
    result = distillation_loss(student, teacher, mask, alpha=1.0, weights=weights)
    expected = torch.stack([0.5 * plain[0, 0], 0.5 * plain[0, 2], 3.0 * plain[1, 1]])
    torch.testing.assert_close(result.loss, expected.sum() / 3)
    torch.testing.assert_close(result.per_token[mask], expected)
    assert torch.equal(result.per_token[~mask], torch.zeros(3, dtype=torch.float64))


def test_masked_positions_change_nothing():
    student, teacher = random_logits()
    mask = torch.tensor([[True, True, False], [True, False, False]])
    expected = distillation_loss(student, teacher, mask, alpha=0.5, top_k=3).per_token
    student, teacher = student.clone(), teacher.clone()
    student[~mask] = torch.randn(3, 7, dtype=torch.float64)
    teacher[~mask] = torch.randn(3, 7, dtype=torch.float64)
    actual = distillation_loss(student, teacher, mask, alpha=0.5, top_k=3).per_token
    assert torch.equal(actual, expected)
    assert expected[mask].min() > 0


@pytest.mark.parametrize("garbage", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize(("top_k", "tail"), [(None, True), (3, True), (3, False)])
def test_garbage_at_masked_positions_reaches_neither_loss_nor_gradient(garbage, top_k, tail):
    student, teacher = random_logits()
    mask = torch.tensor([[True, True, False], [True, False, False]])
    student[~mask] = garbage
    teacher[~mask] = garbage
    student.requires_grad_()
    result = distillation_loss(student, teacher, mask, alpha=0.5, top_k=top_k, tail=tail, clip_min=0.2)
    (result.loss + result.per_token.sum()).backward()
    assert result.per_token.isfinite().all()
    assert student.grad[mask].abs().sum(-1).min() > 0
    assert torch.equal(student.grad[~mask], torch.zeros(3, 7, dtype=torch.float64))


@pytest.mark.parametrize(("top_k", "tail"), [(None, True), (3, True), (3, False)])
def test_an_empty_mask_gives_a_zero_loss_on_the_graph(top_k, tail):
    student, teacher = random_logits()
    student.requires_grad_()
    mask = torch.zeros(2, 3, dtype=torch.bool)
    result = distillation_loss(
        student, teacher, mask, alpha=1.0, top_k=top_k, tail=tail, weights=torch.ones(2).double()
    )
    result.loss.backward()
    assert result.loss.item() == 0
    assert torch.equal(result.per_token, torch.zeros(2, 3, dtype=torch.float64))
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_weights_scale_each_sequence_and_their_gradient():
    student, teacher = random_logits()
    student.requires_grad_()
    mask = all_tokens(student)
    (plain,) = torch.autograd.grad(distillation_loss(student, teacher, mask, alpha=1.0).loss, student)
    weights = torch.tensor([0.0, 2.0], dtype=torch.float64)
    (weighted,) = torch.autograd.grad(
        distillation_loss(student, teacher, mask, alpha=1.0, weights=weights).loss, student
    )
    torch.testing.assert_close(weighted, plain * weights.view(2, 1, 1))


# Errors.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -0.1}, r"distillation\.alpha must be in \[0, 1\], got -0\.1"),
        ({"alpha": 1.1}, r"distillation\.alpha must be in \[0, 1\], got 1\.1"),
        ({"alpha": math.nan}, r"distillation\.alpha must be in \[0, 1\], got nan"),
        ({"top_k": 0}, r"distillation\.top_k must be at least 1.*got 0"),
        ({"top_k": 8}, r"distillation\.top_k must be at most the vocabulary's 7 tokens, got 8"),
        ({"top_k": 1, "tail": False}, r"distillation\.top_k must be at least 2 where distillation\.tail is false"),
        ({"clip_min": 0.0}, r"distillation\.clip_min must be positive"),
        ({"clip_min": -1.0}, r"distillation\.clip_min must be positive"),
        ({"clip_max": 0.0}, r"distillation\.clip_max must be positive"),
        ({"clip_max": math.inf}, r"distillation\.clip_max must be positive and finite"),
        (
            {"clip_min": 6.0, "clip_max": 5.0},
            r"distillation\.clip_min must be at most distillation\.clip_max, got 6\.0 > 5",
        ),
    ],
)
def test_a_setting_out_of_range_is_refused_by_its_key(settings, message):
    student, teacher = random_logits()
    with pytest.raises(ValueError, match=message):
        distillation_loss(student, teacher, all_tokens(student), **({"alpha": 1.0} | settings))


def test_settings_are_checked_without_a_vocabulary():
    check_divergence_settings(1.0, 100, True, 0.2, 5.0)
    check_divergence_settings(0.0, None, False, None, None)
    with pytest.raises(ValueError, match="got 100"):
        check_divergence_settings(1.0, 100, True, None, None, vocab_size=99)


@pytest.mark.parametrize(
    ("teacher", "mask", "weights", "message"),
    [
        ((4, 128, 9), (4, 96), None, r"mask must be \(4, 128\), got \(4, 96\)"),
        ((4, 128, 8), (4, 128), None, r"teacher_logits must be \(4, 128, 9\), got \(4, 128, 8\)"),
        ((4, 128, 9), (4, 128), (3,), r"weights must be \(4,\), got \(3,\)"),
        ((4, 128, 9), (4, 128), (4, 1), r"weights must be \(4,\), got \(4, 1\)"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused_with_both_shapes(teacher, mask, weights, message):
    with pytest.raises(ValueError, match=message):
        check_loss_inputs(
            torch.zeros(4, 128, 9),
            torch.zeros(teacher),
            torch.ones(mask, dtype=torch.bool),
            None if weights is None else torch.ones(weights),
        )


def test_the_loss_checks_its_tensors():
    student, teacher = random_logits()
    # Where jaxtyping checks the signatures it is first, with a TypeError.
    with pytest.raises((ValueError, TypeError), match="mask"):
        distillation_loss(student, teacher, torch.ones(2, 2, dtype=torch.bool), alpha=1.0)


def test_logits_without_a_batch_and_a_mask_of_numbers_are_refused():
    with pytest.raises(ValueError, match=r"student_logits must be \(batch, time, vocab\), got \(3, 7\)"):
        check_loss_inputs(torch.zeros(3, 7), torch.zeros(3, 7), torch.ones(3, dtype=torch.bool), None)
    with pytest.raises(ValueError, match=r"mask must be torch\.bool, got torch\.int64"):
        check_loss_inputs(torch.zeros(2, 3, 7), torch.zeros(2, 3, 7), torch.ones(2, 3, dtype=torch.int64), None)


def test_divergence_names_follow_alpha():
    names = [divergence_name(alpha) for alpha in (0.0, 0.001, 0.5, 0.999, 1.0)]
    assert names == ["forward_kl", "jsd", "jsd", "jsd", "reverse_kl"]
