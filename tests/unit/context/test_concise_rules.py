import random

import pytest

from resd_lightning.context.concise import concise, prune_reason
from resd_lightning.context.playbook import PlaybookEntry


def entry(name, helpful=0, harmful=0, last_step=0):
    return PlaybookEntry(name, "strategies", name, helpful, harmful, last_step)


def ids(entries):
    return [entry.id for entry in entries]


def keep(entries, method, max_entries=None, step=10, seed=0):
    return ids(concise(entries, method=method, max_entries=max_entries, step=step, rng=random.Random(seed)))


MIXED = (
    entry("new", last_step=9),
    entry("old", last_step=8),
    entry("even", 1, 1, last_step=10),
    entry("good", 2, 1, last_step=-3),
    entry("bad", 0, 1, last_step=10),
)


def test_prioritized_keeps_only_helpful_entries():
    assert keep(MIXED, "prioritized") == ["good"]


def test_staleness_drops_harmful_and_unused_older_than_one_step():
    assert keep(MIXED, "staleness") == ["new", "good"]


def test_staleness_over_budget_evicts_the_longest_untagged_and_keeps_order():
    entries = (entry("a", 1, 0, 5), entry("b", 1, 0, -2), entry("c", 1, 0, 7), entry("d", last_step=10))
    assert keep(entries, "staleness", 2) == ["c", "d"]
    assert keep(entries, "staleness", 3) == ["a", "c", "d"]


def test_staleness_ties_evict_the_entry_that_stands_first():
    entries = tuple(entry(name, 1, 0, 5) for name in "abcd")
    assert keep(entries, "staleness", 3) == ["b", "c", "d"]


def test_prioritized_eviction_is_the_seeds_alone_and_keeps_order():
    entries = tuple(entry(f"x{i}", 1) for i in range(20))
    random.seed(1)
    first = keep(entries, "prioritized", 5, seed=3)
    random.seed(2)
    assert keep(entries, "prioritized", 5, seed=3) == first
    assert len(first) == 5
    assert first == sorted(first, key=lambda name: int(name[1:]))
    assert {tuple(keep(entries, "prioritized", 5, seed=seed)) for seed in range(10)} != {tuple(first)}


def test_nothing_is_drawn_while_the_helpful_ones_fit():
    rng = random.Random(7)
    before = rng.getstate()
    concise(MIXED, method="prioritized", max_entries=1, step=10, rng=rng)
    concise(MIXED, method="staleness", max_entries=0, step=10, rng=rng)
    assert rng.getstate() == before


def test_a_budget_of_zero_empties_the_playbook():
    assert keep(MIXED, "prioritized", 0) == []
    assert keep(MIXED, "staleness", 0) == []


def test_unknown_method_is_refused_by_key():
    with pytest.raises(ValueError, match=r"context\.concise must be one of prioritized, staleness, got 'oldest'"):
        keep(MIXED, "oldest")


def test_negative_budget_is_refused_by_key():
    with pytest.raises(ValueError, match=r"context\.max_entries must be at least 0.*got -1"):
        keep(MIXED, "staleness", -1)
    with pytest.raises(ValueError, match=r"context\.max_entries"):
        prune_reason(1, every=4, size=0, max_entries=-1)


@pytest.mark.parametrize(
    ("step", "size", "max_entries", "reason"),
    [
        (0, 3, None, None),
        (3, 3, None, None),
        (4, 3, None, "periodic"),
        (8, 3, 3, "periodic"),
        (4, 4, 3, "over_budget"),
        (5, 4, 3, "over_budget"),
        (5, 3, 3, None),
        (0, 4, 3, "over_budget"),
    ],
)
def test_pruning_is_due_every_fourth_update_or_over_budget(step, size, max_entries, reason):
    assert prune_reason(step, every=4, size=size, max_entries=max_entries) == reason


def test_a_period_below_one_is_refused_by_key():
    with pytest.raises(ValueError, match=r"context\.concise_every must be at least 1, got 0"):
        prune_reason(1, every=0, size=0, max_entries=None)
