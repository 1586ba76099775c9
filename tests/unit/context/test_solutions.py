import pytest

from resd_lightning.context.solutions import SolutionBuffer


def test_the_latest_success_replaces_an_earlier_one():
    buffer = SolutionBuffer()
    assert buffer.get("x") is None
    buffer.put("x", "<think>a</think> first")
    buffer.put("x", "second")
    assert (buffer.get("x"), len(buffer)) == ("second", 1)


def test_keep_only_evicts_the_others():
    buffer = SolutionBuffer.from_dict({"a": "1", "b": "2", "c": "3"})
    buffer.keep_only(["c", "a", "missing"])
    assert buffer.to_dict() == {"a": "1", "c": "3"}


def test_state_is_a_copy_that_restores_the_same_buffer():
    buffer = SolutionBuffer.from_dict({"a": "1"})
    state = buffer.to_dict()
    state["b"] = "2"
    assert buffer.to_dict() == {"a": "1"}
    assert SolutionBuffer.from_dict(state).to_dict() == state


def test_a_state_that_is_not_text_is_refused_by_example():
    with pytest.raises(ValueError, match="example 'a' must map an id to a text, got str -> int"):
        SolutionBuffer.from_dict({"a": 1})
