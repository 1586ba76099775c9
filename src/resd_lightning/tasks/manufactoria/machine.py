"""The machine that programs run on: nodes, a fast interpreter, and a trace for people.

A tape is a string of colours, front first. Pullers take from its front, painters append at its end.

The interpreter rests on one observation: between two pulls only painters act, and they do not touch the front. So from
a node and a front colour everything up to the pull is settled, and so is what follows it up to the next puller.
Such a *stride* is computed once, when it is first taken, and then costs one lookup per symbol whatever it visits;
`benchmarks/manufactoria.py` measures what that gains.
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


_Stride = tuple["_Place", str, int, tuple[Reason | None, str] | None]
"""What happens from one node, given the front colour, up to the next puller that has to look at the tape:

the node it ends at; the colours painted and the number of nodes visited on the way; and, where the run halts inside the
stride, its reason, and the front colour if nothing pulled it. A plain tuple: it is unpacked once per symbol.
"""


class _Place(dict[str, _Stride]):
    """A node where strides begin, with its strides by front colour ("" for the empty tape), each computed when taken.

    Args:
        node: The node's id.
        nodes: The program's nodes.
        places: All places of the program so far, by node.
    """

    __slots__ = ("node", "nodes", "places")

    def __init__(self, node: str, nodes: Mapping[str, Node], places: dict[str, _Place]) -> None:
        super().__init__()
        self.node = node
        self.nodes = nodes
        self.places = places

    def __missing__(self, front: str) -> _Stride:
        stride = self[front] = self._stride(front)
        return stride

    def _stride(self, front: str) -> _Stride:
        """Follow the program while the front colour alone settles the way."""
        nodes = self.nodes
        target = self.node
        painted = ""
        kept = front
        is_pulled = False
        # Before and after the pull each node can be visited once; past that, the way repeats itself for ever.
        for visited in range(2 * len(nodes) + 2):
            node = nodes.get(target)
            if node is None:
                return self, painted, visited + 1, (_reason_at(target), kept)
            if not node.pulls:
                painted += node.paints
                target = node.routes[NEXT]
                if node.paints and not front:  # the tape is no longer empty, so its front has changed after all
                    return self._at(target), painted, visited + 1, None
            elif is_pulled:
                return self._at(target), painted, visited, None
            elif front in node.pulls:
                is_pulled, kept = True, ""
                target = node.target(front)
            else:
                target = node.target(EMPTY)
        return self, "", 0, ("loop", kept)

    def _at(self, node: str) -> _Place:
        place = self.places.get(node)
        if place is None:
            place = self.places[node] = _Place(node, self.nodes, self.places)
        return place


class Program:
    """A parsed program.

    Args:
        nodes: All nodes but END, by id; holds `start`.
    """

    def __init__(self, nodes: Mapping[str, Node]) -> None:
        self.nodes = nodes
        self._entry = _Place(START_ID, nodes, {})

    def run(self, tape: str) -> Run:
        """Run the machine on a tape until it halts, provably loops, or has visited `NODE_LIMIT` nodes."""
        place = self._entry
        steps = 0
        seen: set[tuple[str, str]] | None = None  # most runs need none
        while True:
            painted = ""
            symbols = iter(tape or ("",))
            for front in symbols:
                place, colours, visited, halt = place[front]
                steps += visited
                painted += colours
                if halt:
                    reason, kept = halt
                    if reason == "loop" or steps > NODE_LIMIT:
                        return _LOOP
                    left = kept + "".join(symbols) + painted
                    # What Run(...) does, without the call of a function in Python: a tenth of a short run.
                    return tuple.__new__(Run, (reason is None, left, reason, steps))
            # One pass has used up the old tape, so what was painted is the whole tape. Place and tape are all of
            # the machine's state: seen twice, it never halts. Looking once per pass keeps the check off each step.
            tape = painted
            state = (place.node, tape)
            if seen is None:
                seen = set()
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


_LOOP: Final = Run(False, None, "loop", NODE_LIMIT)


def _reason_at(target: str) -> Reason | None:
    if target == END_ID:
        return None
    return "none" if target == NONE_ID else "unknown_node"
