"""A task of one's own, explained in docs/your_own_task.md."""

from collections.abc import Sequence

from resd_lightning.records import Example, Feedback, Message, Split
from resd_lightning.tasks.base import Task
from resd_lightning.thinking import strip_thinking


class SumsTask(Task):
    """Sums of two numbers; the environment says how far off an answer is."""

    def examples(self, split: Split) -> Sequence[Example]:
        """Return the sums of a split; what is asked in training is not asked again."""
        pairs = [(a, b) for a in range(12, 20) for b in (range(30, 50) if split == "train" else range(50, 54))]
        return [
            Example(f"{a}+{b}", (Message(role="user", content=f"What is {a} + {b}? End with the number."),), a + b)
            for a, b in pairs
        ]

    def verify(self, example: Example, response: str) -> Feedback:
        """Judge the last word of a response."""
        words = strip_thinking(response).split()
        if not words or not words[-1].rstrip(".").isdecimal():
            return Feedback(0.0, (False,), "The response does not end in a number.")
        difference = int(words[-1].rstrip(".")) - int(str(example.answer))
        return Feedback(float(difference == 0), (difference == 0,), f"The answer is off by {difference}.")
