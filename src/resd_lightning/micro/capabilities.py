"""What micro-lm can do, measured on fresh documents: `python -m resd_lightning.micro.capabilities FOLDER`."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jsonargparse import auto_cli
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from resd_lightning.config import OperationName
from resd_lightning.context.answers import ProblemKind
from resd_lightning.context.operations import parse_operations
from resd_lightning.context.prompts import Sections
from resd_lightning.context.reflect import parse_reflection, parse_tags
from resd_lightning.micro.documents import ASKED, MACHINES, TAPE_LENGTHS, DocumentWriter, Entry, Topic, with_entries
from resd_lightning.micro.world import NO_EVIDENCE, deal_rules, draw_tape, evidence, question, response

logger = logging.getLogger(__name__)

Judge = Callable[[str], bool]
Case = tuple[str, Judge]
"""A prompt, and the judge of its answer."""
ADD_ONLY: tuple[OperationName, ...] = ("ADD",)
MAX_NEW_TOKENS = 64
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
    def answer(self, prompts: Sequence[str]) -> list[str]:
        """Return one answer per prompt, in order."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        answers = [""] * len(prompts)
        for start in range(0, len(order), BATCH):
            chunk = order[start : start + BATCH]
            chats = [[{"role": "user", "content": prompts[i]}] for i in chunk]
            batch = self.tokenizer.apply_chat_template(
                chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
            )
            output = self.model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=MAX_NEW_TOKENS,
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


# Judges: each reads an answer as a run would, lets no malformed one pass, and compares it with the one that is due


def says(expected: str) -> Judge:
    """Return the judge of a response."""
    return lambda answer: answer.split() == expected.split()


def is_reflection(expected: str) -> Judge:
    """Return the judge of a reflection's JSON, whatever it says; an insight may be empty, where there is none."""
    return lambda answer: {p.kind for p in parse_reflection(answer).problems} <= {ProblemKind.EMPTY_TEXT}


def is_tags(expected: str) -> Judge:
    """Return the judge of the JSON of verdicts, whatever they are."""
    return lambda answer: not parse_tags(answer).problems


def is_curation(expected: str) -> Judge:
    """Return the judge of a curator's JSON, whatever it says."""
    return lambda answer: not parse_operations(answer, allowed=ADD_ONLY).problems


def same_insight(expected: str) -> Judge:
    """Return the judge of a reflection's insight."""
    wanted = parse_reflection(expected).reflection

    def judge(answer: str) -> bool:
        found = parse_reflection(answer).reflection
        return is_reflection(expected)(answer) and (found and found.key_insight) == (wanted and wanted.key_insight)

    return judge


def same_tags(expected: str) -> Judge:
    """Return the judge of the verdicts on entries, in a reflection or alone."""
    return lambda answer: is_tags(expected)(answer) and parse_tags(answer).tags == parse_tags(expected).tags


def same_operations(expected: str) -> Judge:
    """Return the judge of a curator's operations."""
    wanted = parse_operations(expected, allowed=ADD_ONLY).operations
    return lambda answer: (
        is_curation(expected)(answer) and parse_operations(answer, allowed=ADD_ONLY).operations == wanted
    )


def cases_of(
    writer: DocumentWriter,
    kind: str,
    judge: Callable[[str], Judge],
    count: int,
    wanted: Callable[[str, str], bool] = lambda prompt, answer: True,
    size: int | None = None,
) -> list[Case]:
    """Return single turns of a kind about a machine that mostly stands in the playbook shown.

    Args:
        writer: Draws them.
        kind: A key of `ASKED`.
        judge: Makes a judge from the answer that is due.
        count: How many.
        wanted: Which prompts and answers count.
        size: Entries of the playbook, the machine's among them; None draws 1 to 32, the machine's in three of four.
    """
    cases: list[Case] = []
    while len(cases) < count:
        book = writer.book(size)
        is_known = size is not None or writer.rng.random() < 0.75
        machine = writer.rng.choice(book).machine if is_known else writer.rng.choice(MACHINES)
        template, sections, expected = ASKED[kind](writer, machine, book)
        prompt = writer.prompt(template, with_entries(sections, book))
        if wanted(prompt, expected):
            cases.append((prompt, judge(expected)))
    return cases


def _failures(writer: DocumentWriter, count: int) -> list[tuple[Topic, list[Entry]]]:
    """Return failures about machines whose true rule stands in a playbook of 32 entries."""
    drawn = []
    for _ in range(count):
        book = writer.book(32)
        drawn.append((writer.topic(writer.rng.choice(book).machine, book, trust=1.0), book))
    return drawn


def section_shares(speaker: Speaker, writer: DocumentWriter, count: int) -> dict[str, float]:
    """Return how often the teacher's answer is right by the sections of its prompt; none is a guess."""
    failures = _failures(writer, count)

    def share(prompt: Callable[[Topic, list[Entry]], Sections]) -> float:
        return speaker.share_right(
            [(writer.prompt("teacher", prompt(topic, book)), says(topic.solution)) for topic, book in failures]
        )

    return {
        "nothing": share(lambda t, b: Sections(t.question)),
        "trial and uninformative feedback": share(
            lambda t, b: Sections(t.question, trial=t.trial, feedback=NO_EVIDENCE)
        ),
        "trial and evidence": share(
            lambda t, b: Sections(t.question, trial=t.trial, feedback=evidence(t.machine, t.truth))
        ),
        "playbook of 32": share(lambda t, b: with_entries(Sections(t.question), b)),
        "reflection": share(lambda t, b: Sections(t.question, reflection=t.insight)),
        "solution": share(lambda t, b: Sections(t.question, solution=t.solution)),
        "playbook, trial and uninformative feedback": share(
            lambda t, b: with_entries(Sections(t.question, trial=t.trial, feedback=NO_EVIDENCE), b)
        ),
    }


def chained(speaker: Speaker, writer: DocumentWriter, count: int) -> float:
    """Return how often the model answers right after its own reflection on evidence, as the teacher does in a run."""
    failed = []
    for _ in range(count):
        book = writer.book()
        topic = writer.topic(writer.rng.choice((writer.rng.choice(book).machine, writer.rng.choice(MACHINES))), book)
        said = evidence(topic.machine, topic.truth)
        failed.append((topic, with_entries(Sections(topic.question, trial=topic.trial, feedback=said), book)))
    reflections = speaker.answer([writer.prompt("reflect", sections) for _, sections in failed])
    return speaker.share_right(
        [
            (
                writer.prompt("teacher", replace(sections, reflection=parse_reflection(text).reflection)),
                says(topic.solution),
            )
            for (topic, sections), text in zip(failed, reflections, strict=True)
        ]
    )


def accuracy_without_context(speaker: Speaker, mapping_seed: int, num_machines: int = 64) -> float:
    """Return the share of a world's machines about which the model answers right with nothing but the question."""
    rng = random.Random(f"questions {mapping_seed}")
    cases = []
    for machine, rule in deal_rules(mapping_seed, num_machines).items():
        tape = draw_tape(rng, TAPE_LENGTHS)
        cases.append((question(machine, tape), says(response(machine, rule, tape))))
    return speaker.share_right(cases)


CAPABILITIES: dict[str, tuple[str, Callable[[str], Judge], Callable[[str, str], bool]]] = {
    "applies an insight": ("apply_insight", says, lambda prompt, answer: True),
    "copies a solution": ("copy_solution", says, lambda prompt, answer: True),
    "writes the right insight from evidence": ("reflect", same_insight, lambda prompt, answer: " turns " in prompt),
    "writes what an entry says, or nothing, without evidence": (
        "reflect",
        same_insight,
        lambda prompt, answer: "said wrong" in prompt,
    ),
    "tags a right entry helpful": ("tag", same_tags, lambda prompt, answer: "helpful" in answer),
    "tags a wrong entry harmful": ("tag", same_tags, lambda prompt, answer: "harmful" in answer),
    "tags an entry after a failure with evidence": (
        "reflect",
        same_tags,
        lambda prompt, answer: " turns " in prompt and '"tag"' in answer,
    ),
    "tags nothing where no entry speaks of the machine": (
        "tag",
        same_tags,
        lambda prompt, answer: '"tag"' not in answer,
    ),
    "adds a new lesson": ("curate", same_operations, lambda prompt, answer: "ADD" in answer),
    "leaves out what an entry says": ("curate", same_operations, lambda prompt, answer: "ADD" not in answer),
    "valid JSON, reflections": ("reflect", is_reflection, lambda prompt, answer: True),
    "valid JSON, tags": ("tag", is_tags, lambda prompt, answer: True),
    "valid JSON, curation": ("curate", is_curation, lambda prompt, answer: True),
}
"""What is asked, how answers are judged, and which prompts and answers count."""


def report(folder: Path, documents: int = 1000, seed: int = 1, out: Path | None = None) -> dict[str, float]:
    """Log, and return, the share of right answers per capability.

    Args:
        folder: The model, in Hugging Face format.
        documents: Fresh documents per capability.
        seed: Their seed.
        out: A JSON file to write the shares to, or none.
    """
    speaker = Speaker(folder)
    writer = DocumentWriter(random.Random(f"capabilities {seed}"), max_entries=32)
    shares: dict[str, float] = {}
    for size in (1, 8, 32, 64):
        cases = cases_of(writer, "look_up", says, documents, size=size)
        shares[f"answers from a playbook of {size}"] = speaker.share_right(cases)
    for name, (kind, judge, wanted) in CAPABILITIES.items():
        shares[name] = speaker.share_right(cases_of(writer, kind, judge, documents, wanted))
    shares["reflects, then answers"] = chained(speaker, writer, documents)
    for sections, share in section_shares(speaker, writer, documents).items():
        shares[f"teacher shown {sections}"] = share
    logger.info("%s", json.dumps(shares, indent=2))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"documents": documents, "seed": seed, "shares": shares}, indent=2) + "\n")
    return shares


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    auto_cli(report)
