"""Blocks between fences of backticks, as models write programs."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_FENCE: Final = re.compile(r"(\s*)`{3,}\s*(\w*)")


class Block(NamedTuple):
    """One fenced block.

    Attributes:
        language: The word after the opening fence, in lower case; empty where there is none.
        text: The lines between the fences, without the fences' own indentation, as inside a list.
        is_closed: The block has a closing fence.
    """

    language: str
    text: str
    is_closed: bool


def fenced_blocks(text: str) -> list[Block]:
    """Return the blocks that hold something, in their order; a fence with a language opens one wherever it stands."""
    blocks: list[Block] = []
    indent = language = ""
    lines: list[str] | None = None  # None outside of a block

    def end(is_closed: bool) -> None:
        if lines is not None and "".join(lines).strip():
            blocks.append(Block(language, "\n".join(lines), is_closed))

    for line in text.split("\n"):
        fence = _FENCE.match(line)
        if fence is None:
            if lines is not None:
                lines.append(line.removeprefix(indent))
        elif lines is not None and not line.strip().strip("`"):
            end(is_closed=True)
            lines = None
        else:
            end(is_closed=False)
            indent, language, lines = fence[1], fence[2].lower(), []
    end(is_closed=False)
    return blocks
