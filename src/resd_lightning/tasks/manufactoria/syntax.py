"""The language's parser: text to `Program`, or an error that names the line and says what to write instead."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from resd_lightning.tasks.manufactoria.machine import EMPTY, END_ID, NEXT, NONE_ID, START_ID, Node, Program

_PAINTS: Final = {"PAINTER_RED": "R", "PAINTER_BLUE": "B", "PAINTER_YELLOW": "Y", "PAINTER_GREEN": "G"}
_PULLS: Final = {"PULLER_RB": ("R", "B"), "PULLER_YG": ("Y", "G")}
_BRANCHES: Final = dict.fromkeys(("START", *_PAINTS), (NEXT,)) | {
    kind: (*colours, EMPTY) for kind, colours in _PULLS.items()
}
_RESERVED: Final = ("END", NONE_ID)  # targets with a meaning of their own, so no node can have these names
_IDENTIFIER: Final = re.compile(r"\w+")
_ROUTE: Final = re.compile(r"(?:(NEXT)|\[(\w*)\])\s+(\S.*)")
_INDENT: Final = 4


class ManufactoriaSyntaxError(ValueError):
    """A program that the language does not allow.

    Attributes:
        line: Counted from 1, in the text given to `parse`.
        source: That line as written.
        problem: What is wrong with it.
        fix: What to write instead.
    """

    def __init__(self, line: int, source: str, problem: str, fix: str) -> None:
        super().__init__(line, source, problem, fix)
        self.line = line
        self.source = source
        self.problem = problem
        self.fix = fix

    def __str__(self) -> str:
        quoted = f": `{self.source.strip()}`" if self.source.strip() else ""
        return f"line {self.line}: {self.problem}{quoted}. {self.fix}"


@dataclass(slots=True)
class _Block:
    """A node while its routes are being read, with the lines that errors about it have to name."""

    id: str
    kind: str
    line: int
    routes: dict[str, str] = field(default_factory=dict)
    route_lines: dict[str, int] = field(default_factory=dict)


def parse(program: str) -> Program:
    """Parse a program's text; code fences around it, blank lines and comments are skipped.

    Raises:
        ManufactoriaSyntaxError: At the first line that breaks a rule; rules about the whole program come last.
    """
    return _Parser(program).program()


class _Parser:
    """Reads line by line; `_line` is the number of the current one, counted from 1."""

    def __init__(self, program: str) -> None:
        self._sources = program.split("\n")
        self._blocks: dict[str, _Block] = {}
        self._line = 0

    def program(self) -> Program:
        open_block: _Block | None = None
        first, last = self._inside_fences()
        for self._line in range(first, last + 1):
            code = self._sources[self._line - 1].partition("#")[0].rstrip()
            if not code:
                continue
            text = code.lstrip()
            indent = code[: len(code) - len(text)]
            if "\t" in indent or len(indent) >= _INDENT:
                self._add_route(open_block, text)
                continue
            open_block = self._read_header(text)
            if open_block.id in self._blocks:
                raise self._error(
                    f"the id {open_block.id} is already taken by line {self._blocks[open_block.id].line}",
                    "Give every node an id of its own; a program has one START and one END.",
                )
            self._blocks[open_block.id] = open_block
        self._line = len(self._sources)
        for required, form in ((START_ID, "START start:"), (END_ID, "END end")):
            if required not in self._blocks:
                raise self._error(f"the program ends without a line `{form}`", f"Add exactly one `{form}` line.")
        return Program({block.id: self._close(block) for block in self._blocks.values() if block.kind != "END"})

    def _error(self, problem: str, fix: str) -> ManufactoriaSyntaxError:
        return ManufactoriaSyntaxError(self._line, self._sources[self._line - 1], problem, fix)

    def _inside_fences(self) -> tuple[int, int]:
        """Return the first and last line to read: without a fence that opens the text, and one that closes it."""
        filled = [number for number, source in enumerate(self._sources, start=1) if source.strip()]
        if filled and self._sources[filled[0] - 1].lstrip().startswith("```"):
            filled = filled[1:]
        if filled and self._sources[filled[-1] - 1].strip() == "```":
            filled = filled[:-1]
        return (filled[0], filled[-1]) if filled else (1, 0)

    def _read_header(self, text: str) -> _Block:
        kind, *rest = text.split(None, 1)
        name = rest[0] if rest else ""
        if kind == "END":
            if name != END_ID:
                raise self._error("END is malformed", "Write `END end`, without a colon and with the id end.")
            return _Block(END_ID, kind, self._line)
        if kind not in _BRANCHES:
            if text.startswith(("NEXT", "[")):
                raise self._error("this route is not indented enough", "Indent routes by four spaces or a tab.")
            raise self._error("this line opens no known node", f"Nodes are {', '.join(_BRANCHES)} and END.")
        if not name.endswith(":"):
            raise self._error("the colon after the node's id is missing", f"Write `{kind} {name or 'id'}:`.")
        name = name[:-1]
        if not _IDENTIFIER.fullmatch(name):
            raise self._error("this is no valid id", "Ids consist of letters, digits and underscores.")
        if name in _RESERVED:
            raise self._error(f"{name} is no name for a node", "Choose another id.")
        if kind == "START" and name != START_ID:
            raise self._error("START has another id than start", "Write `START start:`.")
        return _Block(name, kind, self._line)

    def _add_route(self, block: _Block | None, text: str) -> None:
        if block is None or block.kind == "END":
            problem = "END has no routes" if block else "this route belongs to no node"
            raise self._error(problem, "Put routes below the START, painter or puller line they belong to.")
        match = _ROUTE.fullmatch(text)
        if match is None:
            raise self._error("this is no route", _forms(block.kind))
        branch = match[1] or match[2]
        if branch not in _BRANCHES[block.kind] or (branch == NEXT) != bool(match[1]):
            raise self._error(f"{block.kind} has no such route", _forms(block.kind))
        if not _IDENTIFIER.fullmatch(match[3]):
            raise self._error("this is no valid target", "A target is one id, `end` or `NONE`.")
        if branch not in block.routes:  # of two branches for one colour the first wins
            block.routes[branch] = match[3]
            block.route_lines[branch] = self._line
        elif branch == NEXT:
            raise self._error(f"{block.kind} {block.id} has a second NEXT", "Keep exactly one NEXT.")

    def _close(self, block: _Block) -> Node:
        """Check what needs the whole program, and freeze the node."""
        if block.kind not in _PULLS and not block.routes:
            self._line = block.line
            raise self._error(
                f"{block.kind} {block.id} has no NEXT", "Add `NEXT target` below it, indented by four spaces."
            )
        for branch, target in block.routes.items():
            if target not in self._blocks and target not in _RESERVED:
                self._line = block.route_lines[branch]
                raise self._error(
                    f"the target {target} is not defined",
                    f"Add a node {target}, or route to another id, `end` or `NONE`.",
                )
        paints = _PAINTS.get(block.kind, "")
        pulls = _PULLS.get(block.kind, ())
        return Node(block.id, block.kind, paints, pulls, block.routes)


def _forms(kind: str) -> str:
    forms = (f"`{branch} target`" if branch == NEXT else f"`[{branch}] target`" for branch in _BRANCHES[kind])
    return f"Below {kind} write {', '.join(forms)}."
