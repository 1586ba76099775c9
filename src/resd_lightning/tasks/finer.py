"""The FiNER task: tag financial figures with XBRL labels (RESD, Tasks: FiNER)."""

from __future__ import annotations

from string import ascii_uppercase
from typing import Final, Literal

from resd_lightning.config import require
from resd_lightning.records import Example, Feedback, Message, Split
from resd_lightning.tasks.base import reward_for
from resd_lightning.tasks.files import KEY, FileTask
from resd_lightning.tasks.marked_answer import find_answer
from resd_lightning.tasks.rows import Fields, clip, read_text_field

_REPOSITORY: Final = "https://github.com/ace-agent/ace"
_FILES: Final = {"train": "finer_train_batched_1000_samples.jsonl", "test": "finer_val_batched_500_samples.jsonl"}
"""The public files, in the repository's folder eval/finance/data: as many rows as the paper trains and tests on."""

_END_OF_INSTRUCTION: Final = "Provide nothing else."
"""Ends the part of a row's context that all rows share; left out, as it forbids to think and to mark the answer."""

_END_OF_QUESTIONS: Final = "Output US GAAP tags:"
"""Ends a row's context; replaced by the form that the answer is asked for in."""

_MAX_SHOWN: Final = 160
"""Characters of a written tag that feedback repeats; the longest real tag has 110."""


class FinerTask(FileTask):
    """Say which XBRL label each of several figures in financial reports has, usually four at a time.

    The labels in the last complete `<answer>A,B,C,D</answer>` after the thinking trace are compared place by place,
    whatever their case and spaces. Missing ones are wrong, and those beyond the number asked for are not looked at.
    Constructing reads no file.

    Args:
        leak_answers: Feedback on a wrong tag names the right one, as in the paper; False says only which are wrong.
        train_path: File with the public training rows, {context, target}, as JSON lines or a JSON list.
        test_path: File with the public test rows.
        reward: all is 1 if every tag is right and else 0, as in the paper; share is the share of right tags, as in the
            authors' script.
        val_share: Share of the training rows held out as "val"; 0 validates on the test rows, as the paper does.
        seed: Decides which rows val_share holds out.
        train_size: Keep only the first so many training rows, counted before val_share is held out; None keeps all.
        test_size: Keep only the first so many test rows; None keeps all.

    Raises:
        ConfigError: An argument is out of range.
    """

    def __init__(
        self,
        leak_answers: bool = True,
        train_path: str | None = None,
        test_path: str | None = None,
        reward: Literal["all", "share"] = "all",
        val_share: float = 0.0,
        seed: int = 0,
        train_size: int | None = None,
        test_size: int | None = None,
    ) -> None:
        super().__init__(train_path, test_path, val_share, seed, train_size, test_size)
        require(reward in ("all", "share"), f"{KEY}.reward", "all or share", reward)
        self.leak_answers = leak_answers
        self.reward = reward

    def read_row(self, fields: Fields, place: str) -> Example:
        """Return a public row as an example: the list of labels as the system's message, the questions as the user's.

        Raises:
            ValueError: A field is missing or has another form than the public rows'.
        """
        context, target = read_text_field(fields, "context"), read_text_field(fields, "target")
        count = len(_split_target(target))
        instruction, questions = split_context(context)
        asked = f"{questions}\n\n{_answer_form(count)}"
        messages = (Message(role="system", content=instruction), Message(role="user", content=asked))
        return Example(f"finer-{place}", messages, target)

    def how_to_get(self, split: Split) -> str:
        """Return where the public rows are."""
        return (
            f"Download eval/finance/data/{_FILES[split]} from {_REPOSITORY}, which has the rows of FiNER in the form "
            f"{{context, target}}, and set {KEY}.{split}_path to where it lies."
        )

    def verify(self, example: Example, response: str) -> Feedback:
        """Judge one response; whatever a model writes, the result is a feedback of bounded length.

        Raises:
            ValueError: The example's answer is no string of tags, so it is not one of this task's.
        """
        if not isinstance(example.answer, str):
            raise ValueError(f"example {example.id}: answer must be a string of tags, got {example.answer!r:.60}")
        expected = _split_target(example.answer)
        written = extract_tags(response)
        if written is None:
            text = f"The response holds no complete answer. {_answer_form(len(expected))}"
            return Feedback(0.0, (False,) * len(expected), text)
        padded = [*written, *[""] * len(expected)]
        passed = tuple(_same(tag, right) for tag, right in zip(padded, expected, strict=False))
        return Feedback(reward_for(passed, self.reward), passed, self._describe(written, expected, passed))

    def _describe(self, written: list[str], expected: list[str], passed: tuple[bool, ...]) -> str:
        lines = [f"{sum(passed)} of {len(expected)} tags are right."]
        if len(written) != len(expected):
            lines.append(f"The answer has {len(written)} tags, {len(expected)} were asked for.")
        for at, right in enumerate(expected):
            if not passed[at]:
                tag = clip(written[at], _MAX_SHOWN) if at < len(written) else ""
                said = f"Tag {at + 1} is wrong: {tag}" if tag else f"Tag {at + 1} is missing"
                lines.append(f"{said}. The right tag is {right}." if self.leak_answers else f"{said}.")
        return "\n".join(lines)


def split_context(context: str) -> tuple[str, str]:
    """Return the instruction with the list of labels, and the questions, out of a public row's context.

    Raises:
        ValueError: The context lacks the sentence between the two.
    """
    instruction, mark, questions = context.partition(_END_OF_INSTRUCTION)
    questions = questions.strip().removesuffix(_END_OF_QUESTIONS).rstrip()
    if not mark or not instruction.strip() or not questions:
        raise ValueError(
            f'context must be an instruction and questions, with "{_END_OF_INSTRUCTION}" between them, got '
            f"{clip(repr(context))}"
        )
    return instruction.strip(), questions


def extract_tags(response: str) -> list[str] | None:
    """Return the tags of the last complete answer after the thinking trace, whitespace tidied; None without one."""
    answer = find_answer(response)
    if not answer:
        return None if answer is None else []
    return [" ".join(tag.split()) for tag in answer.split(",")]


def _split_target(target: str) -> list[str]:
    tags = [tag.strip() for tag in target.split(",")]
    if not all(tags) or len(tags) > len(ascii_uppercase):
        raise ValueError(
            f"target must be 1 to {len(ascii_uppercase)} tags with commas between, got {clip(repr(target))}"
        )
    return tags


def _same(tag: str, right: str) -> bool:
    return "".join(tag.split()).lower() == "".join(right.split()).lower()


def _answer_form(count: int) -> str:
    form = f"<answer>{','.join(ascii_uppercase[:count])}</answer>"
    return f"End your response with the tags alone, in the order of the questions, in this form: {form}"
