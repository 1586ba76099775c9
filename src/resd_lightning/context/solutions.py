"""The solution buffer B: the latest success per example (RESD Alg. 1 line 11)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class SolutionBuffer:
    """Past successes by example id; the one thing in the context that changes in place.

    The whole response is stored, its thinking included: what of it a prompt shows is the prompt's business.
    """

    def __init__(self) -> None:
        self._responses: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._responses)

    def put(self, example_id: str, response: str) -> None:
        """Store a successful response; it replaces an earlier one of the same example."""
        self._responses[example_id] = response

    def get(self, example_id: str) -> str | None:
        """Return the latest success of the example, or None."""
        return self._responses.get(example_id)

    def keep_only(self, example_ids: Iterable[str]) -> None:
        """Evict every example but these; in a single pass over the data the others never come back."""
        kept = frozenset(example_ids)
        self._responses = {id_: response for id_, response in self._responses.items() if id_ in kept}

    def to_dict(self) -> dict[str, str]:
        """Return a copy of plain strings, for the checkpoint."""
        return dict(self._responses)

    @classmethod
    def from_dict(cls, state: Mapping[str, str]) -> SolutionBuffer:
        """Return the buffer that `to_dict` described.

        Raises:
            ValueError: An id or a response isn't a string.
        """
        buffer = cls()
        for example_id, response in state.items():
            if not isinstance(example_id, str) or not isinstance(response, str):
                raise ValueError(
                    f"solution buffer: example {example_id!r} must map an id to a text, "
                    f"got {type(example_id).__name__} -> {type(response).__name__}"
                )
            buffer.put(example_id, response)
        return buffer
