"""The program in a response: what follows the thinking trace, in the last fenced block."""

from __future__ import annotations

from resd_lightning.thinking import strip_thinking


def extract_program(response: str) -> str | None:
    """Return the program's text, or None if the response holds none.

    The thinking trace doesn't count (`strip_thinking`). The answer is the last block between fences; if there is none,
    the block that the response leaves open; without fences, the whole text if it has a START.
    """
    text = strip_thinking(response)
    blocks, unclosed = _fenced_blocks(text)
    if blocks:
        return blocks[-1]
    if unclosed is not None:
        return unclosed
    return text if "START" in text else None


def _fenced_blocks(text: str) -> tuple[list[str], str | None]:
    """Return the closed blocks that hold something, and the last one if it is never closed and holds something."""
    blocks: list[str] = []
    inside: list[str] | None = None
    for line in text.split("\n"):
        fence = line.strip()
        if not fence.startswith("```"):
            if inside is not None:
                inside.append(line)
        elif inside is None or fence.strip("`"):  # a fence with a language opens a block, wherever it stands
            inside = []
        else:
            block = "\n".join(inside)
            inside = None
            if block.strip():
                blocks.append(block)
    unclosed = "\n".join(inside) if inside is not None else ""
    return blocks, unclosed if unclosed.strip() else None
