"""The machine that programs run on: nodes, a fast interpreter, and a trace for people.

A tape is a string of colours, front first. Pullers take from its front, painters append at its end.

The interpreter rests on one observation: between two pulls only painters act, and they do not touch the front. So from
a node and a front colour everything up to the pull is settled, and so is what follows it up to the next puller.
Such a *stride* is computed once, when it is first taken, and then costs one lookup per symbol whatever it visits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

COLOURS: Final = "RBYG"
NODE_LIMIT: Final = 1000
"""A run that has not come to an end after this many visited nodes counts as a loop."""

EMPTY: Final = "EMPTY"
NEXT: Final = "NEXT"
START_ID: Final = "start"
END_ID: Final = "end"
NONE_ID: Final = "NONE"

Reason = Literal["none", "loop", "unknown_node"]
_Halt = Literal["end", "none", "loop", "unknown_node"]


@dataclass(frozen=True, slots=True)
class Node:
    """One START, painter or puller.

    Attributes:
        id: The name that routes use.
        kind: The keyword that opened it, such as "PULLER_RB".
        paints: The colour a painter appends; empty for the other kinds.
        pulls: The colours a puller removes; empty for the other kinds.
        routes: Target by "NEXT", or by colour and "EMPTY"; a puller's missing branch is absent here and means NONE.
    """

    id: str
    kind: str
    paints: str
    pulls: tuple[str, ...]
    routes: Mapping[str, str]

    def branch(self, tape: str) -> str:
        """Return which route the tape takes here: "NEXT", the pulled colour, or "EMPTY"."""
        if not self.pulls:
            return NEXT
        front = tape[:1]
        return front if front in self.pulls else EMPTY

    def target(self, branch: str) -> str:
        """Return where a branch leads; NONE where the program gives no such branch."""
        return self.routes.get(branch, NONE_ID)


class Run(NamedTuple):
    """How one run came out. A named tuple, since building a frozen dataclass costs as much as a short run.

    Attributes:
        finished: The machine reached `end`: it accepts.
        tape: What was left on the tape; None after a loop.
        reason: Why it rejects; None where it accepts.
        steps: Nodes visited, the final NONE or END included; `NODE_LIMIT` for a loop.
    """

    finished: bool
    tape: str | None
    reason: Reason | None
    steps: int


class Visit(NamedTuple):
    """One line of a trace: a node, and the tape as the machine arrives there."""

    node: str
    tape: str


_Stride = tuple["_Place", str, int, tuple[_Halt, str] | None]
"""What happens from one node, given the front colour, up to the next puller that has to look at the tape:

the node it ends at; the colours painted and the number of nodes visited on the way; and, where the run halts inside the
stride, how, and the front colour if nothing pulled it. A plain tuple: it is unpacked once per symbol.
"""


class _Place:
    """A node where strides begin, with those taken so far by front colour ("" for the empty tape)."""

    __slots__ = ("node", "strides")

    def __init__(self, node: str) -> None:
        self.node = node
        self.strides: dict[str, _Stride] = {}


class Program:
    """A parsed program.

    Args:
        nodes: All nodes but END, by id; holds `start`.
    """

    def __init__(self, nodes: Mapping[str, Node]) -> None:
        self.nodes = nodes
        self._places: dict[str, _Place] = {}
        self._entry = self._place(START_ID)

    def run(self, tape: str) -> Run:
        """Run the machine on a tape until it halts, provably loops, or has visited `NODE_LIMIT` nodes."""
        place = self._entry
        steps = 0
        seen: set[tuple[str, str]] = set()
        while True:
            painted = ""
            symbols = iter(tape or ("",))
            for front in symbols:
                try:
                    place, colours, visited, halt = place.strides[front]
                except KeyError:
                    place, colours, visited, halt = self._take(place, front)
                steps += visited
                painted += colours
                if halt:
                    reason, kept = halt
                    if reason == "loop" or steps > NODE_LIMIT:
                        return _LOOP
                    left = kept + "".join(symbols) + painted
                    return Run(True, left, None, steps) if reason == "end" else Run(False, left, reason, steps)
            # One pass has used up the old tape, so what was painted is the whole tape. Place and tape are all of
            # the machine's state: seen twice, it never halts. Looking once per pass keeps the check off each step.
            tape = painted
            state = (place.node, tape)
            if steps >= NODE_LIMIT or state in seen:
                return _LOOP
            seen.add(state)

    def trace(self, tape: str) -> Iterator[Visit]:
        """Yield each visit of a run, node by node, up to the end, a repeated state, or the limit.

        A loop's last visit is the first one that repeats an earlier one. Slower than `run`, and independent of it.
        """
        target = START_ID
        seen: set[Visit] = set()
        for _ in range(NODE_LIMIT):
            visit = Visit(target, tape)
            yield visit
            if target not in self.nodes or visit in seen:
                return
            seen.add(visit)
            node = self.nodes[target]
            branch = node.branch(tape)
            if node.pulls and branch != EMPTY:
                tape = tape[1:]
            tape += node.paints
            target = node.target(branch)

    def _take(self, place: _Place, front: str) -> _Stride:
        """Compute the stride from a place, and keep it there."""
        stride = self._stride(place, front)
        place.strides[front] = stride
        return stride

    def _stride(self, place: _Place, front: str) -> _Stride:
        """Follow the program from a place while the front colour alone settles the way."""
        target = place.node
        painted = ""
        kept = front
        is_pulled = False
        # Before and after the pull each node can be visited once; past that, the way repeats itself for ever.
        for visited in range(2 * len(self.nodes) + 2):
            node = self.nodes.get(target)
            if node is None:
                return place, painted, visited + 1, (_halt_at(target), kept)
            if not node.pulls:
                painted += node.paints
                target = node.target(NEXT)
                if node.paints and not front:  # the tape is no longer empty, so its front has changed after all
                    return self._place(target), painted, visited + 1, None
            elif is_pulled:
                return self._place(target), painted, visited, None
            elif front in node.pulls:
                is_pulled, kept = True, ""
                target = node.target(front)
            else:
                target = node.target(EMPTY)
        return place, "", 0, ("loop", kept)

    def _place(self, node: str) -> _Place:
        if node not in self._places:
            self._places[node] = _Place(node)
        return self._places[node]


_LOOP: Final = Run(False, None, "loop", NODE_LIMIT)


def _halt_at(target: str) -> _Halt:
    if target == END_ID:
        return "end"
    return "none" if target == NONE_ID else "unknown_node"
