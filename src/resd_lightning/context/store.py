"""The context of a run: its playbooks and its solution buffer, owned by the module and held in every checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Literal, cast

from resd_lightning.context.playbook import Playbook
from resd_lightning.context.solutions import SolutionBuffer

GLOBAL = ""
"""Key of the one playbook of a run with global scope; example ids are never empty."""


class ContextStore:
    """What teacher prompts read besides the rollout: playbooks and past solutions.

    It is open while an update's context is made (RESD Alg. 1 lines 6 to 11) and sealed from the moment the teacher
    prompts are built until the next update begins, so that no step reads a context that is still moving.

    Args:
        scope: One playbook for the run, or one for each example.
        initial: What the run's one playbook starts from; None for an empty one.
    """

    def __init__(self, scope: Literal["global", "example"] = "global", initial: Playbook | None = None) -> None:
        self.scope = scope
        self._playbooks: dict[str, Playbook] = {} if initial is None else {GLOBAL: initial}
        self._solutions = SolutionBuffer()
        self._is_sealed = False

    def key(self, example_id: str) -> str:
        """Return the key of the playbook that serves this example."""
        return GLOBAL if self.scope == "global" else example_id

    def playbook(self, example_id: str = GLOBAL) -> Playbook:
        """Return the playbook that serves this example; empty where nothing was learned yet."""
        return self._playbooks.get(self.key(example_id), Playbook())

    def put_playbook(self, key: str, playbook: Playbook) -> None:
        """Replace one playbook, by its `key`."""
        self._require_open()
        self._playbooks[key] = playbook

    def solution(self, example_id: str) -> str | None:
        """Return the latest success on this example (B(x) in RESD Alg. 1), or None."""
        return self._solutions.get(example_id)

    def put_solution(self, example_id: str, text: str) -> None:
        """Remember a success (RESD Alg. 1 line 11)."""
        self._require_open()
        self._solutions.put(example_id, text)

    def begin_update(self, example_ids: Iterable[str], *, keep_solutions: bool) -> None:
        """Open the context for an update on these examples and count it for each playbook that serves them.

        Args:
            example_ids: The update's examples.
            keep_solutions: Keep other examples' solutions; otherwise they are evicted, since a single pass never
                meets those prompts again.
        """
        ids = list(example_ids)
        self._is_sealed = False
        if not keep_solutions:
            self._solutions.keep_only(ids)
        for key in dict.fromkeys(self.key(example_id) for example_id in ids):
            self._playbooks[key] = self._playbooks.get(key, Playbook()).next_step()

    def seal(self) -> None:
        """Close the context until the next update begins."""
        self._is_sealed = True

    @property
    def playbooks(self) -> Mapping[str, Playbook]:
        """All playbooks by key, in the order they were first needed."""
        return dict(self._playbooks)

    @property
    def num_entries(self) -> int:
        """Entries in all playbooks together."""
        return sum(len(playbook) for playbook in self._playbooks.values())

    @property
    def num_solutions(self) -> int:
        """Examples with a remembered success."""
        return len(self._solutions)

    def fingerprint(self) -> str:
        """Return a hash of all playbooks, to compare over ranks and runs."""
        digest = hashlib.sha256()
        for key, playbook in sorted(self._playbooks.items()):
            digest.update(f"{key}={playbook.fingerprint()};".encode())
        return digest.hexdigest()

    def to_json(self) -> str:
        """Return the playbook for people to read and edit; with one per example, all of them by example."""
        playbooks = {key: playbook.to_dict() for key, playbook in self._playbooks.items()}
        shown = playbooks.get(GLOBAL, Playbook().to_dict()) if self.scope == "global" else playbooks
        return json.dumps(shown, indent=2, ensure_ascii=False) + "\n"

    def state_dict(self) -> dict[str, object]:
        """Return the context as plain dicts, lists, texts and numbers."""
        playbooks = {key: playbook.to_dict() for key, playbook in self._playbooks.items()}
        return {"scope": self.scope, "playbooks": playbooks, "solutions": self._solutions.to_dict()}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: The state's playbooks have another scope, or are malformed.
        """
        if state["scope"] != self.scope:
            raise ValueError(
                f"model.context.scope is {self.scope}, but the checkpoint's playbooks have scope {state['scope']}"
            )
        playbooks = cast("Mapping[str, Mapping[str, object]]", state["playbooks"])
        self._playbooks = {key: Playbook.from_dict(playbook) for key, playbook in playbooks.items()}
        self._solutions = SolutionBuffer.from_dict(cast("Mapping[str, str]", state["solutions"]))
        self._is_sealed = False

    def _require_open(self) -> None:
        if self._is_sealed:
            raise RuntimeError("the context is sealed: it changes only before the update's teacher prompts are built")
