"""The program in a response (the last fenced block of Python after the thinking trace), and the sandbox it runs in."""

from __future__ import annotations

from typing import Final

from resd_lightning.config import require
from resd_lightning.sandbox import Limits, Sandbox
from resd_lightning.tasks.fences import fenced_blocks
from resd_lightning.tasks.files import KEY
from resd_lightning.thinking import strip_thinking

_PYTHON: Final = ("python", "python3", "py")


def extract_program(response: str, sign: str) -> str | None:
    """Return the program's text, or None if the response holds none.

    Blocks marked as Python come first, then unmarked ones; of each the last counts, and one that the response leaves
    open counts as well. Without any, the whole text is taken if the sign, for example `def`, is in it.
    """
    text = strip_thinking(response)
    blocks = fenced_blocks(text)
    for languages in (_PYTHON, ("",)):
        if fitting := [block.text for block in blocks if block.language in languages]:
            return fitting[-1]
    return text if not blocks and sign in text else None


def sandbox_for_answers(timeout_s: float, memory_mib: int, require_isolation: bool) -> Sandbox:
    """Return the sandbox that a task runs responses in.

    Raises:
        ConfigError: A limit is out of range; the text names the task's argument.
    """
    require(timeout_s > 0, f"{KEY}.timeout_s", "above 0", timeout_s)
    require(memory_mib >= 64, f"{KEY}.memory_mib", "at least 64", memory_mib)
    limits = Limits(wall_s=timeout_s, cpu_s=int(timeout_s) + 1, memory_mib=memory_mib)
    return Sandbox(limits, require_isolation=require_isolation)
