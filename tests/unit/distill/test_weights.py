from __future__ import annotations

import pytest
import torch

from resd_lightning.distill.weights import success_rate_weights


def outcomes(*is_success):
    return torch.tensor(is_success, dtype=torch.bool)


def test_the_rarer_outcome_weighs_more_by_hand():
    # s = 1/4: the success weighs 3/4, each failure 1/4; their mean is 3/8.
    weights = success_rate_weights(outcomes(True, False, False, False))
    assert weights.tolist() == pytest.approx([2.0, 2 / 3, 2 / 3, 2 / 3])
    weights = success_rate_weights(outcomes(True, True, True, False))
    assert weights.tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2.0])


def test_exponents_act_on_their_own_outcome_by_hand():
    # s = 1/4, alpha 2, beta 0.5: 9/16 for the success, 1/2 for each failure; their mean is 33/64.
    weights = success_rate_weights(outcomes(False, True, False, False), alpha=2.0, beta=0.5)
    assert weights.tolist() == pytest.approx([32 / 33, 36 / 33, 32 / 33, 32 / 33])


def test_zero_exponents_weigh_all_alike():
    assert torch.equal(success_rate_weights(outcomes(True, False, False), alpha=0.0, beta=0.0), torch.ones(3))


@pytest.mark.parametrize("is_success", [True, False])
@pytest.mark.parametrize("batch", [1, 2, 3, 7, 32])
def test_a_batch_of_one_outcome_keeps_weights_of_exactly_one(batch, is_success):
    assert torch.equal(success_rate_weights(outcomes(*[is_success] * batch), alpha=1.7, beta=0.3), torch.ones(batch))


def test_a_single_success_in_two_is_balanced():
    assert torch.equal(success_rate_weights(outcomes(True, False)), torch.ones(2))


@pytest.mark.parametrize("num_successes", range(8))
def test_weights_average_one_and_are_float32(num_successes):
    weights = success_rate_weights(torch.arange(7) < num_successes, alpha=1.5, beta=0.7)
    assert weights.dtype == torch.float32
    assert weights.mean().item() == pytest.approx(1.0, abs=1e-6)


def test_the_default_gives_both_outcomes_the_same_total_weight():
    is_success = torch.arange(10) < 3
    weights = success_rate_weights(is_success)
    assert weights[is_success].sum().item() == pytest.approx(weights[~is_success].sum().item())


def test_an_empty_batch_has_no_weights():
    assert success_rate_weights(outcomes()).shape == (0,)


def test_negative_exponents_are_refused_by_name():
    with pytest.raises(ValueError, match="beta must be at least 0, got -1"):
        success_rate_weights(outcomes(True, False), beta=-1.0)
