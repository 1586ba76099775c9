"""A task and an engine for runs in subprocesses: real rollouts of a random model, and a context that moves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace

from resd_lightning.config import Author, SamplingConfig
from resd_lightning.records import Completion, Example, Feedback, Message, Purpose, Split
from resd_lightning.rollout.engine import GenerationRequest, Schema
from resd_lightning.rollout.hf import HFEngine
from resd_lightning.tasks.base import Task


class CoinTask(Task):
    """A response succeeds when its hash is even: about half of a random model's do, and which ones is its weights'."""

    def __init__(self, train_size: int = 8) -> None:
        self.train_size = train_size

    def examples(self, split: Split) -> Sequence[Example]:
        size = self.train_size if split == "train" else 2
        return [
            Example(f"{split}-{i}", (Message(role="user", content=f"Write something about {i}."),), None)
            for i in range(size)
        ]

    def verify(self, example: Example, response: str) -> Feedback:
        digest = hashlib.sha256(response.encode("utf-8", "replace")).digest()
        tests = tuple(byte % 2 == 0 for byte in digest[:3])
        return Feedback(float(tests[0]), tests, f"The first bytes of the hash were {list(digest[:3])}.")


class ReflectiveEngine(HFEngine):
    """Rolls the model out for real; answers as reflector, tagger and curator from the text it is asked about."""

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: SamplingConfig,
        *,
        author: Author,
        max_prompt_tokens: int,
        schema: Schema | None,
        on_progress: Callable[[int], object],
    ) -> list[Completion]:
        completions = super().generate(
            requests,
            sampling,
            author=author,
            max_prompt_tokens=max_prompt_tokens,
            schema=schema,
            on_progress=on_progress,
        )
        return [
            replace(completion, text=_answer(request)) if _answer(request) else completion
            for request, completion in zip(requests, completions, strict=True)
        ]


def _answer(request: GenerationRequest) -> str:
    if request.purpose not in (Purpose.REFLECT, Purpose.TAG, Purpose.CURATE):
        return ""
    number = int(hashlib.sha256(request.messages[-1]["content"].encode()).hexdigest(), 16)
    tags = [{"id": f"e{number % 7 + 1:05d}", "tag": ("helpful", "harmful", "neutral")[number % 3]}]
    if request.purpose == Purpose.CURATE:
        lesson = {"type": "ADD", "section": "others", "content": f"lesson number {number % 10**9}"}
        return json.dumps({"reasoning": "", "operations": [lesson] if number % 5 else []})
    return json.dumps({"key_insight": f"insight {number % 1000}", "tags": tags})
