"""The answer that a response marks by `<answer>` and `</answer>`."""

from __future__ import annotations

from resd_lightning.thinking import strip_thinking


def find_answer(response: str) -> str | None:
    """Return the last complete marked answer after the thinking trace, stripped; None without one.

    An opening tag that is repeated begins the answer anew.
    """
    for begun in reversed(strip_thinking(response).split("<answer>")[1:]):
        body, closed, _ = begun.partition("</answer>")
        if closed:
            return body.strip()
    return None
