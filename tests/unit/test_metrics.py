from __future__ import annotations

import math

import pytest
import torch

from resd_lightning.metrics import CHECKPOINT_METRICS, BestAtK, MeanAtK, best_step, rank_checkpoints

SCORES = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.5, 0.25, 0.0, 0.25], [0.0, 0.0, 0.0, 0.0]])


def test_mean_and_best_over_prompts_by_hand():
    mean, best = MeanAtK(), BestAtK()
    mean.update(SCORES)
    best.update(SCORES)
    assert mean.compute().item() == pytest.approx((0.25 + 0.25 + 0.0) / 3)
    assert best.compute().item() == pytest.approx((1.0 + 0.5 + 0.0) / 3)


@pytest.mark.parametrize("metric_class", [MeanAtK, BestAtK])
def test_prompts_count_alike_however_they_are_batched(metric_class):
    whole, parts = metric_class(), metric_class()
    whole.update(SCORES)
    parts.update(SCORES[:1])
    parts.update(SCORES[1:])
    assert whole.compute() == parts.compute()


@pytest.mark.parametrize("metric_class", [MeanAtK, BestAtK])
def test_ranks_with_different_shares_sum_to_the_whole(metric_class):
    whole, one, other = metric_class(), metric_class(), metric_class()
    whole.update(SCORES)
    one.update(SCORES[:1])
    other.update(SCORES[1:])
    for name, reduce in one._reductions.items():  # what torchmetrics does with the states gathered from all ranks
        setattr(one, name, reduce(torch.stack([getattr(one, name), getattr(other, name)])))
    assert one.compute() == whole.compute()


def test_best_and_mean_agree_with_one_sample():
    mean, best = MeanAtK(), BestAtK()
    mean.update(SCORES[:, :1])
    best.update(SCORES[:, :1])
    assert mean.compute() == best.compute() == pytest.approx(1.5 / 3)


def test_reset_forgets_all_prompts():
    metric = MeanAtK()
    metric.update(torch.ones(5, 4))
    metric.reset()
    metric.update(torch.zeros(1, 4))
    assert metric.compute().item() == 0


def test_a_share_without_prompts_is_nan_alone_and_nothing_in_a_sum():
    metric = MeanAtK()
    metric.update(torch.zeros(0, 4))
    assert math.isnan(metric.compute().item())
    metric.update(torch.ones(1, 4))
    assert metric.compute().item() == 1


def test_scores_without_samples_are_refused():
    with pytest.raises(ValueError, match=r"scores must be \(example, k\) with k at least 1, got \(3, 0\)"):
        MeanAtK().update(torch.zeros(3, 0))


@pytest.mark.parametrize("shape", [(3,), (3, 4, 2)])
def test_scores_of_another_shape_are_refused(shape):
    # Where jaxtyping checks the signatures it is first, with a TypeError.
    with pytest.raises((ValueError, TypeError), match="scores"):
        BestAtK().update(torch.zeros(shape))


def test_rank_sums_by_hand():
    history = {
        4: {"a": 0.1, "b": 0.9},  # ranks 3 and 1
        8: {"a": 0.3, "b": 0.5},  # ranks 1 and 2.5
        12: {"a": 0.2, "b": 0.5},  # ranks 2 and 2.5
    }
    assert rank_checkpoints(history, ["a", "b"]) == {4: 4.0, 8: 3.5, 12: 4.5}
    assert best_step(history, ["a", "b"]) == 8


def test_the_choice_follows_ranks_and_not_the_values_sum():
    history = {1: {"a": 0.9, "b": 0.1, "c": 0.1}, 2: {"a": 0.2, "b": 0.2, "c": 0.2}}
    assert best_step(history, ["a", "b", "c"]) == 2


def test_equal_rank_sums_go_to_the_earlier_step_whatever_the_order_of_logging():
    history = {8: {"a": 0.2, "b": 0.1}, 4: {"a": 0.1, "b": 0.2}}
    assert best_step(history, ["a", "b"]) == 4
    assert list(rank_checkpoints(history, ["a", "b"])) == [4, 8]


def test_the_papers_four_metrics_are_the_default():
    history = {step: dict.fromkeys(CHECKPOINT_METRICS, value) for step, value in ((0, 0.1), (4, 0.4), (8, 0.2))}
    assert best_step(history) == 4
    assert rank_checkpoints(history) == {0: 12.0, 4: 4.0, 8: 8.0}


def test_a_choice_from_nothing_is_refused():
    with pytest.raises(ValueError, match="history of validation metrics is empty"):
        best_step({}, ["a"])
    with pytest.raises(ValueError, match="at least one metric"):
        best_step({1: {"a": 0.1}}, [])


def test_a_missing_metric_or_a_nan_is_refused_by_step_and_name():
    with pytest.raises(ValueError, match="step 8 has no metric 'b'"):
        best_step({4: {"a": 0.1, "b": 0.1}, 8: {"a": 0.2}}, ["a", "b"])
    with pytest.raises(ValueError, match="step 4 has nan for the metric 'a'"):
        best_step({4: {"a": math.nan}}, ["a"])
