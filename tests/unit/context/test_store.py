from __future__ import annotations

import json

import pytest

from resd_lightning.context.playbook import Playbook
from resd_lightning.context.store import ContextStore


def opened(scope: str = "global", ids: tuple[str, ...] = ("a", "b")) -> ContextStore:
    store = ContextStore(scope)
    store.begin_update(ids, keep_solutions=False)
    return store


def test_global_scope_serves_all_examples_from_one_playbook() -> None:
    store = opened()
    assert store.key("a") == store.key("b") == ""
    store.put_playbook("", Playbook().add("others", "lesson"))
    assert store.playbook("a") is store.playbook("b")
    assert store.num_entries == 1


def test_example_scope_keeps_playbooks_apart() -> None:
    store = opened("example")
    store.put_playbook("a", store.playbook("a").add("others", "lesson"))
    assert [len(store.playbook(id_)) for id_ in ("a", "b", "never seen")] == [1, 0, 0]
    assert list(store.playbooks) == ["a", "b"]


def test_an_update_counts_once_for_each_playbook_that_serves_it() -> None:
    store = opened(ids=("a", "b", "a"))
    assert store.playbook().step == 1
    store = opened("example", ids=("a", "b", "a"))
    store.begin_update(["b"], keep_solutions=False)
    assert [store.playbook(id_).step for id_ in ("a", "b", "c")] == [1, 2, 0]


def test_solutions_of_prompts_that_left_are_evicted_unless_kept() -> None:
    for keep, left in ((True, "1"), (False, None)):
        store = opened()
        store.put_solution("a", "1")
        store.put_solution("b", "2")
        store.begin_update(["b", "c"], keep_solutions=keep)
        assert (store.solution("a"), store.solution("b"), store.solution("c")) == (left, "2", None)
        assert store.num_solutions == (2 if keep else 1)


def test_a_sealed_context_refuses_changes_until_the_next_update() -> None:
    store = opened()
    store.seal()
    with pytest.raises(RuntimeError, match="the context is sealed"):
        store.put_playbook("", Playbook())
    with pytest.raises(RuntimeError, match="the context is sealed"):
        store.put_solution("a", "1")
    store.begin_update(["a"], keep_solutions=False)
    store.put_solution("a", "1")
    assert store.solution("a") == "1"


def test_state_survives_json_and_restores_the_same_context() -> None:
    store = opened("example")
    store.put_playbook("b", store.playbook("b").add("others", "lesson", update=3, source="b"))
    store.put_solution("a", "é 1")
    state = json.loads(json.dumps(store.state_dict()))
    restored = ContextStore("example")
    restored.load_state_dict(state)
    assert restored.playbooks == store.playbooks
    assert restored.solution("a") == "é 1"
    assert restored.fingerprint() == store.fingerprint()


def test_fingerprint_tells_playbooks_apart_by_content_and_by_key() -> None:
    stores = [opened("example") for _ in range(3)]
    assert stores[0].fingerprint() == stores[1].fingerprint()
    stores[1].put_playbook("a", stores[1].playbook("a").add("others", "lesson"))
    stores[2].put_playbook("b", stores[2].playbook("b").add("others", "lesson"))
    assert len({store.fingerprint() for store in stores}) == 3


def test_playbooks_of_another_scope_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"model\.context\.scope is example, but .* scope global"):
        ContextStore("example").load_state_dict(ContextStore("global").state_dict())
