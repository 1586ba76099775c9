"""Turns names in docstrings into links to what they name. An extension of griffe, which mkdocs.yml names.

A docstring says `Playbook` in backticks, as the terminal shows it. Where that is something of this package that has a
place in the API, as seen from where the docstring stands, the site links to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

import griffe

NAME = re.compile(r"(?<![`\[\w])`([A-Za-z]\w*(?:\.\w+)*)(\(\))?`(?![`\]])")


class References(griffe.Extension):
    """Links the names in all docstrings of a package once it has been read."""

    def on_package(self, *, pkg: griffe.Module, **_: object) -> None:
        """Rewrite the docstrings."""
        for thing in list(_within(pkg)):
            if thing.docstring is not None:
                thing.docstring.value = NAME.sub(partial(_link, seen_from=thing), thing.docstring.value)


def _within(parent: griffe.Object) -> Iterator[griffe.Object]:
    yield parent
    for member in parent.members.values():
        if isinstance(member, griffe.Object):
            yield from _within(member)


def _link(match: re.Match[str], seen_from: griffe.Object) -> str:
    named = _named(match[1], seen_from)
    return match[0] if named is None or named.path == seen_from.path else f"[{match[0]}][{named.path}]"


def _named(name: str, seen_from: griffe.Object) -> griffe.Object | None:
    """Return what a name means where it is written, if the API has it."""
    first, *rest = name.split(".")
    arguments = seen_from.parameters if isinstance(seen_from, griffe.Function | griffe.Class) else ()
    if first in {argument.name for argument in arguments}:
        return None
    try:
        found = seen_from.modules_collection[seen_from.resolve(first)]
        for part in rest:
            found = found.all_members[part]
        target = found.final_target if isinstance(found, griffe.Alias) else found
    except (griffe.GriffeError, KeyError):
        return None
    is_private = any(part.startswith("_") for part in target.path.split("."))
    if target.is_module or is_private or not target.has_docstring:  # `micro` is a word more often than a module
        return None
    return target if target.path.startswith("resd_lightning.") else None
