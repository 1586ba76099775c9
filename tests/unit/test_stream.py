from __future__ import annotations

import pytest

from resd_lightning.config import ConfigError
from resd_lightning.records import Example, Message
from resd_lightning.stream import PromptStream


def examples(*ids: str) -> list[Example]:
    return [Example(id_, (Message(role="user", content=id_),), None) for id_ in ids]


def dealt(stream: PromptStream) -> list[str]:
    return ["".join(example.id for example in stream.batch(update)) for update in range(stream.num_updates)]


def test_each_batch_serves_k_updates_in_order_and_the_incomplete_last_is_dropped() -> None:
    stream = PromptStream(examples(*"abcdefg"), batch_size=2, inner_updates=3)
    assert dealt(stream) == ["ab"] * 3 + ["cd"] * 3 + ["ef"] * 3
    assert [stream.is_new_batch(update) for update in range(5)] == [True, False, False, True, False]


def test_the_papers_742_prompts_make_92_updates() -> None:
    stream = PromptStream(examples(*map(str, range(742))), batch_size=32, inner_updates=4)
    assert (stream.num_batches, stream.num_updates) == (23, 92)


def test_a_batch_follows_from_its_number_alone() -> None:
    stream = PromptStream(examples(*"abcdef"), batch_size=2, inner_updates=2)
    forward = dealt(stream)
    assert ["".join(e.id for e in stream.batch(u)) for u in (5, 0, 3, 5)] == [forward[u] for u in (5, 0, 3, 5)]


@pytest.mark.parametrize(("max_batches", "num_updates"), [(1, 2), (2, 4), (3, 6), (99, 6), (None, 6)])
def test_max_batches_shortens_the_run(max_batches: int | None, num_updates: int) -> None:
    stream = PromptStream(examples(*"abcdef"), batch_size=2, inner_updates=2, max_batches=max_batches)
    assert stream.num_updates == num_updates


@pytest.mark.parametrize("update", [-1, 6])
def test_an_update_outside_the_stream_is_an_error(update: int) -> None:
    stream = PromptStream(examples(*"abcdef"), batch_size=2, inner_updates=2)
    with pytest.raises(IndexError, match=f"update {update} is outside the stream's 6"):
        stream.batch(update)


@pytest.mark.parametrize(
    ("ids", "complaint"),
    [
        ("", "no training examples"),
        ("a", "data.batch_size is 2, but data.task yields 1"),
        ("abcb", "two training examples with the id 'b'"),
    ],
)
def test_data_that_makes_no_stream_is_refused(ids: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        PromptStream(examples(*ids), batch_size=2, inner_updates=2)
