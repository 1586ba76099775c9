"""What a model said once its thinking trace is taken off: the only place in the package that knows the think tags."""

from __future__ import annotations

THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"


def strip_thinking(text: str) -> str:
    """Return what follows the thinking trace, without surrounding whitespace.

    Everything up to the last `</think>` is thinking, so nested tags and a trace whose opening tag stood in the
    prompt both come off. Of what is left, nothing after a `<think>` that never closes counts: a response cut in the
    middle of its thoughts has said nothing. Text without tags is returned as it is, as nothing tells it apart from an
    answer.

    Source: RESD strips the trace from trials, reflections and solutions wherever they enter a prompt.
    """
    after_last_trace = text.rpartition(THINK_CLOSE)[2]
    return after_last_trace.partition(THINK_OPEN)[0].strip()
