"""The tape-machine task: hidden rules, sparse reward, and feedback that has to be interpreted before it helps."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import cast

from resd_lightning.config import ConfigError
from resd_lightning.micro.world import (
    MALFORMED,
    NO_EVIDENCE,
    deal_rules,
    draw_tape,
    evidence,
    lesson,
    question,
)
from resd_lightning.records import Example, Feedback, Message, Split
from resd_lightning.tasks.base import Task
from resd_lightning.thinking import strip_thinking

Answer = tuple[str, tuple[str, ...], str | None]
"""An example's answer: its machine, the machine's output, and the evidence to show a failure, if any."""


MAX_DRAWS = 1000
"""Tapes tried for one evaluation prompt before training counts as having asked about all."""


class TapeMachinesTask(Task):
    """Say what each of some machines makes of a tape, never having been told their rules.

    A response is right if the colours after its last `answer` are the machine's output. The environment never shows
    the right answer: for a share of the failures it says what the machine makes of one fixed test tape, for the rest
    only that the answer was wrong. Validation and test ask about the same machines on tapes that training doesn't.

    Args:
        mapping_seed: Deals the rules to the machines; any integer is another world.
        num_machines: 16, 32, 48 or 64; every rule belongs to equally many.
        tape_lengths: Lengths that tapes may have; micro-lm has met 4, 5 and 6.
        informative_share: Share of the training prompts whose failures come with evidence.
        train_size: Training prompts; the machines take turns in a shuffled order.
        eval_size: Validation prompts, and as many test prompts.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        mapping_seed: int = 0,
        num_machines: int = 32,
        tape_lengths: tuple[int, ...] = (4, 5, 6),
        informative_share: float = 0.5,
        train_size: int = 512,
        eval_size: int = 256,
    ) -> None:
        if not 0.0 <= informative_share <= 1.0:
            raise ValueError(f"informative_share must be in [0, 1], got {informative_share}")
        if not tape_lengths or not all(4 <= length <= 8 for length in tape_lengths):
            raise ValueError(f"tape_lengths must be lengths from 4 to 8, got {tape_lengths}")
        if min(train_size, eval_size) < 1:
            raise ValueError(f"train_size and eval_size must be at least 1, got {train_size} and {eval_size}")
        self.rules = deal_rules(mapping_seed, num_machines)
        self._true_lessons = frozenset(lesson(machine, rule) for machine, rule in self.rules.items())
        self._mapping_seed = mapping_seed
        self._tape_lengths = tape_lengths
        self._informative_share = informative_share
        self._sizes: dict[Split, int] = {"train": train_size, "val": eval_size, "test": eval_size}

    def examples(self, split: Split) -> Sequence[Example]:
        """Return the split's prompts, each with an `Answer`; none of val or test is among the training prompts.

        Raises:
            ConfigError: Training asks about all tapes there are.
        """
        asked = set() if split == "train" else {example.question for example in self.examples("train")}
        rng = random.Random(f"tape machines {self._mapping_seed} {split}")
        machines: list[str] = []
        examples: list[Example] = []
        while len(examples) < self._sizes[split]:
            if not machines:
                machines = rng.sample(list(self.rules), k=len(self.rules))
            machine = machines.pop()
            tapes = (draw_tape(rng, self._tape_lengths) for _ in range(MAX_DRAWS))
            tape = next((tape for tape in tapes if question(machine, tape) not in asked), None)
            if tape is None:
                raise ConfigError(
                    f"data.task.init_args.train_size {self._sizes['train']} asks about nearly all tapes of the lengths "
                    f"{self._tape_lengths}: none is left for {split}; lower it, or give tape_lengths more"
                )
            shown = evidence(machine, self.rules[machine]) if rng.random() < self._informative_share else None
            answer: Answer = (machine, self.rules[machine].apply(tape), shown)
            message = Message(role="user", content=question(machine, tape))
            examples.append(Example(f"{split}-{len(examples):05d}", (message,), answer, family=machine))
        return examples

    def verify(self, example: Example, response: str) -> Feedback:
        """Compare the response's answer with the machine's output."""
        _, output, shown = cast("Answer", example.answer)
        _, found, answer = strip_thinking(response).rpartition("answer")
        if not found:
            return Feedback(0.0, (False,), MALFORMED)
        if tuple(answer.split()) == output:
            return Feedback(1.0, (True,), "")
        return Feedback(0.0, (False,), shown or NO_EVIDENCE)

    def is_true(self, lesson: str) -> bool:
        """Whether a playbook entry says a machine's rule as it is."""
        return " ".join(lesson.split()) in self._true_lessons
