import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from resd_lightning.context.concise import concise
from resd_lightning.context.playbook import PlaybookEntry

GOLDEN = Path(__file__).resolve().parents[2] / ".." / "shared" / "golden" / "concise_open.json"


def _cases() -> Iterator[object]:
    if not GOLDEN.exists():
        yield pytest.param(None, marks=pytest.mark.skip(reason="no reference cases beside the repository"))
        return
    for number, case in enumerate(json.loads(GOLDEN.read_text(encoding="utf-8"))):
        yield pytest.param(case, id=f"{number}-{case['method']}-{case['max_entries']}")


@pytest.mark.parametrize("case", list(_cases()))
def test_concise_keeps_what_the_reference_keeps(case):
    entries = [
        PlaybookEntry(e["id"], "others", "", e["helpful"], e["harmful"], e["last_tagged_step"]) for e in case["entries"]
    ]
    kept = concise(
        entries, method=case["method"], max_entries=case["max_entries"], step=case["step"], rng=random.Random(0)
    )
    kept_ids = [entry.id for entry in kept]
    if case["exact"]:
        assert kept_ids == case["kept"]
        return
    # The reference drew which helpful ones go; size, class and order don't depend on the draw.
    assert len(kept_ids) == len(case["kept"]) == case["max_entries"]
    assert all(entry.is_helpful for entry in kept)
    assert kept_ids == [entry.id for entry in entries if entry.id in set(kept_ids)]
