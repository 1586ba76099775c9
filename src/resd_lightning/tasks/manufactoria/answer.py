"""The program in a response: what follows the thinking trace, in the last fenced block."""

from __future__ import annotations

from resd_lightning.tasks.fences import fenced_blocks
from resd_lightning.thinking import strip_thinking


def extract_program(response: str) -> str | None:
    """Return the program's text, or None if the response holds none.

    The thinking trace doesn't count (`strip_thinking`). The answer is the last block between fences; if there is none,
    the block that the response leaves open; without fences, the whole text if it has a START.
    """
    text = strip_thinking(response)
    blocks = fenced_blocks(text)
    if blocks:
        return ([block for block in blocks if block.is_closed] or blocks)[-1].text
    return text if "START" in text else None
