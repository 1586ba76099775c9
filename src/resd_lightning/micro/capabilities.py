"""What micro-lm can do, measured on fresh documents: `python -m resd_lightning.micro.capabilities FOLDER`."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jsonargparse import auto_cli
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from resd_lightning.config import OperationName
from resd_lightning.context.operations import Add, parse_operations
from resd_lightning.context.prompts import Sections
from resd_lightning.context.reflect import parse_reflection, parse_tags
from resd_lightning.micro.documents import (
    MACHINES,
    DocumentWriter,
    Turn,
    answer_from_book,
    as_entries,
    curate,
    reflect,
    tag,
)
from resd_lightning.micro.world import NO_EVIDENCE, RULES, evidence, lesson, question, response
from resd_lightning.records import Reflection

logger = logging.getLogger(__name__)

Case = tuple[str, Callable[[str], bool]]
"""A prompt, and the judge of its answer."""
ADD_ONLY: tuple[OperationName, ...] = ("ADD",)
BATCH = 128


class Speaker:
    """A model that answers prompts greedily.

    Args:
        folder: Its Hugging Face folder.
    """

    def __init__(self, folder: Path) -> None:
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, padding_side="left")

    @torch.no_grad()
    def answer(self, prompts: Sequence[str], max_new_tokens: int = 64) -> list[str]:
        """Return one answer per prompt, in order."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        answers = [""] * len(prompts)
        for start in range(0, len(order), BATCH):
            chunk = order[start : start + BATCH]
            texts = [f"<|user|> {prompts[i]} <|assistant|>" for i in chunk]
            batch = self.tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
            output = self.model.generate(
                **batch,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=self.tokenizer.pad_token_id,
                eos_token_id=self.tokenizer.eos_token_id,
            )
            replies = self.tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
            for i, reply in zip(chunk, replies, strict=True):
                answers[i] = reply
        return answers

    def share_right(self, cases: Sequence[Case]) -> float:
        """Return the share of cases whose answer its judge accepts."""
        answers = self.answer([prompt for prompt, _ in cases])
        return sum(judge(answer) for (_, judge), answer in zip(cases, answers, strict=True)) / len(cases)


def _equals(expected: str) -> Callable[[str], bool]:
    return lambda answer: answer.split() == expected.split()


def _single(turns: Sequence[Turn]) -> Case:
    prompt, expected = turns[0]
    return prompt, _equals(expected)


def _draw(writer: DocumentWriter, make: Callable[[DocumentWriter], list[Turn]], wanted: str, count: int) -> list[Turn]:
    """Return documents of one kind whose prompt holds the words wanted."""
    found: list[Turn] = []
    while len(found) < count:
        turn = make(writer)[0]
        if wanted in turn[0]:
            found.append(turn)
    return found


def insight_cases(writer: DocumentWriter, count: int) -> list[Case]:
    """Return teacher prompts whose insight states the rule, beside a playbook that mostly doesn't."""
    cases = []
    for _ in range(count):
        machine, tape, truth = writer.rng.choice(MACHINES), writer.tape(), writer.rng.choice(RULES)
        book = writer.book(machine, (), writer.rng.randint(1, 32))
        said = writer.rng.choice((evidence(machine, truth), NO_EVIDENCE))
        sections = Sections(
            question(machine, tape),
            as_entries(book),
            Reflection(lesson(machine, truth)),
            trial=response(machine, writer.other(truth), tape),
            feedback=said,
        )
        cases.append((writer.prompt("teacher", sections), _equals(response(machine, truth, tape))))
    return cases


def chained(speaker: Speaker, writer: DocumentWriter, count: int) -> float:
    """Return how often the model answers right after its own reflection on its own kind of failure."""
    drafts = []
    for _ in range(count):
        machine, tape, truth = writer.rng.choice(MACHINES), writer.tape(), writer.rng.choice(RULES)
        book = as_entries(writer.book(machine, (), writer.rng.randint(1, 32)))
        failed = Sections(
            question(machine, tape),
            book,
            trial=response(machine, writer.other(truth), tape),
            feedback=evidence(machine, truth),
        )
        drafts.append((failed, response(machine, truth, tape)))
    reflections = [
        parse_reflection(text).reflection
        for text in speaker.answer([writer.prompt("reflect", failed) for failed, _ in drafts])
    ]
    cases = [
        (
            writer.prompt("teacher", Sections(f.question, f.entries, reflection, f.trial, f.feedback)),
            _equals(expected),
        )
        for (f, expected), reflection in zip(drafts, reflections, strict=True)
    ]
    return speaker.share_right(cases)


def _right_insight(expected: str) -> Callable[[str], bool]:
    wanted = parse_reflection(expected).reflection

    def judge(answer: str) -> bool:
        found = parse_reflection(answer).reflection
        return found is not None and wanted is not None and found.key_insight == wanted.key_insight

    return judge


def _right_tags(expected: str) -> Callable[[str], bool]:
    return lambda answer: parse_tags(answer).tags == parse_tags(expected).tags


def _right_operations(expected: str) -> Callable[[str], bool]:
    wanted = parse_operations(expected, allowed=ADD_ONLY).operations
    return lambda answer: parse_operations(answer, allowed=ADD_ONLY).operations == wanted


def _no_problems(answer: str) -> bool:
    return not parse_tags(answer).problems


def _adds(answer: str) -> bool:
    parsed = parse_operations(answer, allowed=ADD_ONLY)
    return not parsed.problems and all(isinstance(operation, Add) for operation in parsed.operations)


def report(folder: Path, documents: int = 1000, seed: int = 1) -> dict[str, float]:
    """Print, and return, the share of right answers per capability.

    Args:
        folder: The model, in Hugging Face format.
        documents: Fresh documents per capability.
        seed: Their seed.
    """
    speaker = Speaker(folder)
    writer = DocumentWriter(random.Random(f"capabilities {seed}"), max_entries=32)
    shares: dict[str, float] = {}
    for size in (1, 8, 32, 64):
        cases = [_single(answer_from_book(writer, size)) for _ in range(documents)]
        shares[f"answers from a playbook of {size}"] = speaker.share_right(cases)
    shares["applies an insight"] = speaker.share_right(insight_cases(writer, documents))
    reflections = _draw(writer, reflect, " turns ", documents)
    shares["writes the right insight"] = speaker.share_right([(p, _right_insight(e)) for p, e in reflections])
    shares["tags entries after a failure"] = speaker.share_right([(p, _right_tags(e)) for p, e in reflections])
    tags = _draw(writer, tag, "tag", documents)
    shares["tags entries after a success"] = speaker.share_right([(p, _right_tags(e)) for p, e in tags])
    curations = _draw(writer, curate, "curate", documents)
    shares["curates rightly"] = speaker.share_right([(p, _right_operations(e)) for p, e in curations])
    shares["valid JSON, reflections"] = speaker.share_right([(p, _no_problems) for p, _ in reflections])
    shares["valid JSON, curation"] = speaker.share_right([(p, _adds) for p, _ in curations])
    shares["reflects, then answers"] = chained(speaker, writer, documents)
    logger.info("%s", json.dumps(shares, indent=2))
    return shares


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    auto_cli(report)
