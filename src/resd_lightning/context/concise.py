"""CONCISE: which playbook entries stay (RESD Alg. 1 line 6, App. D)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal, get_args

from resd_lightning.context.playbook import PlaybookEntry

ConciseMethod = Literal["prioritized", "staleness"]
PruneReason = Literal["periodic", "over_budget"]

CONCISE_METHODS: tuple[ConciseMethod, ...] = get_args(ConciseMethod)
MAX_UNUSED_AGE_STEPS = 1
"""Staleness keeps an unused entry for this many context updates after it was made (RESD App. D)."""


def concise(
    entries: Sequence[PlaybookEntry],
    *,
    method: ConciseMethod,
    max_entries: int | None,
    step: int,
    rng: random.Random,
) -> tuple[PlaybookEntry, ...]:
    """Return the entries that stay, in their order.

    `prioritized` keeps the helpful ones and evicts from them at random while they exceed the budget. `staleness` drops
    the harmful ones and the unused ones older than `MAX_UNUSED_AGE_STEPS`, and evicts the longest-untagged of the
    rest while they exceed the budget; of entries last tagged in the same update, the one that stands first goes first.

    Args:
        entries: The playbook's entries.
        method: Which rule.
        max_entries: The budget; None removes by class only.
        step: The playbook's count of context updates; an entry's `last_step` may be negative or ahead of it.
        rng: Drawn from only when `prioritized` has to evict. The authors' code draws from the global random state
            instead, which ties pruning to whatever else used it.

    Raises:
        ValueError: The method is unknown or the budget is negative.

    Source: RESD App. D.
    """
    _check_budget(max_entries)
    if method == "prioritized":
        kept = [entry for entry in entries if entry.is_helpful]
        surplus = _surplus(kept, max_entries)
        evicted = set(rng.sample(range(len(kept)), surplus)) if surplus else set()
    elif method == "staleness":
        kept = [entry for entry in entries if not entry.is_harmful and not _is_stale(entry, step)]
        # sorted() is stable, which is the tie rule above.
        evicted = set(sorted(range(len(kept)), key=lambda i: kept[i].last_step)[: _surplus(kept, max_entries)])
    else:
        raise ValueError(f"context.concise must be one of {', '.join(CONCISE_METHODS)}, got {method!r}")
    return tuple(entry for i, entry in enumerate(kept) if i not in evicted)


def prune_reason(step: int, *, every: int, size: int, max_entries: int | None) -> PruneReason | None:
    """Return why the playbook is due for pruning now, or None.

    "over_budget" calls for `concise` with the budget; "periodic" for `concise` with max_entries None. A playbook that
    is both is pruned once, to the budget. Nothing is periodic at step 0, so that a playbook the user wrote to start
    from isn't emptied before any of its entries could be tagged.

    Args:
        step: The playbook's count of context updates.
        every: The period F in context updates; the paper's is 4.
        size: How many entries the playbook holds.
        max_entries: The budget, or None.

    Raises:
        ValueError: The period is below 1 or the budget is negative.

    Source: RESD App. D.
    """
    _check_budget(max_entries)
    if every < 1:
        raise ValueError(f"context.concise_every must be at least 1, got {every}")
    if max_entries is not None and size > max_entries:
        return "over_budget"
    if step > 0 and step % every == 0:
        return "periodic"
    return None


def _check_budget(max_entries: int | None) -> None:
    if max_entries is not None and max_entries < 0:
        raise ValueError(f"context.max_entries must be at least 0, or null for no budget, got {max_entries}")


def _surplus(kept: Sequence[PlaybookEntry], max_entries: int | None) -> int:
    return 0 if max_entries is None else max(0, len(kept) - max_entries)


def _is_stale(entry: PlaybookEntry, step: int) -> bool:
    return entry.is_unused and step - entry.last_step > MAX_UNUSED_AGE_STEPS
