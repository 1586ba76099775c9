from __future__ import annotations

from resd_lightning.callbacks.tensorboard_text import transcript_text
from resd_lightning.records import Completion, Example, Feedback, Message, Rollout, TeacherPrompt


def test_half_a_surrogate_pair_is_shown_as_a_question_mark() -> None:
    example = Example("e", (Message(role="user", content="What is \ud83d?"),), "")
    feedback = Feedback(0.0, (False,), "it raised ValueError: \ud800")
    rollout = Rollout(example, 0, Completion("I say \udfff.", (), ()), feedback)
    text = transcript_text(rollout, [], TeacherPrompt(example.messages, (), frozenset()))
    assert text.encode("utf-8").count(b"?") == 4
