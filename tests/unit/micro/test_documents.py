from __future__ import annotations

import random
from collections import Counter

import pytest

from resd_lightning.config import ContextConfig
from resd_lightning.context.answers import ProblemKind
from resd_lightning.context.operations import parse_operations
from resd_lightning.context.reflect import parse_reflection, parse_tags
from resd_lightning.micro.documents import ASKED, DOCUMENTS, MACHINES, DocumentWriter, Entry, Topic, with_entries
from resd_lightning.micro.pretrain import batches, encode_document
from resd_lightning.micro.tokens import MAX_ENTRIES_EVER, micro_tokenizer
from resd_lightning.micro.world import RULES, Rule, evidence, response


def make_writer(seed: int = 0, max_entries: int = 64) -> DocumentWriter:
    return DocumentWriter(random.Random(seed), max_entries)


@pytest.mark.parametrize("kind", list(DOCUMENTS))
def test_every_word_of_every_document_is_in_the_vocabulary(kind: str) -> None:
    tokenizer, writer = micro_tokenizer(), make_writer()
    for _ in range(100):
        ids, is_learned = encode_document(tokenizer, DOCUMENTS[kind](writer))
        assert tokenizer.unk_token_id not in ids
        assert len(ids) == len(is_learned)
        assert is_learned[-1]
        assert not is_learned[0]


@pytest.mark.parametrize("kind", list(ASKED))
def test_tokens_come_back_as_the_text_they_were_so_json_survives(kind: str) -> None:
    tokenizer, writer = micro_tokenizer(), make_writer(1)
    for _ in range(50):
        _, _, answer = ASKED[kind](writer, writer.rng.choice(MACHINES), writer.book())
        decoded = tokenizer.decode(tokenizer.encode(answer, add_special_tokens=False))
        assert decoded.split() == answer.split()


def test_answers_parse_under_the_projects_parsers_without_a_problem() -> None:
    writer = make_writer(2)
    for _ in range(300):
        book = writer.book()
        machine = writer.rng.choice(book).machine
        reflection = parse_reflection(ASKED["reflect"](writer, machine, book)[2])
        kinds = {problem.kind for problem in reflection.problems} - {ProblemKind.EMPTY_TEXT}
        assert not kinds
        assert (reflection.reflection is None) == bool(reflection.problems)
        tags = parse_tags(ASKED["tag"](writer, machine, book)[2])
        assert not tags.problems
        assert [tag.id for tag in tags.tags] == [entry.id for entry in book if entry.machine == machine][-1:]
        operations = parse_operations(ASKED["curate"](writer, machine, book)[2], allowed=ContextConfig().operations)
        assert not operations.problems


def test_every_document_draws_its_own_mapping_so_none_can_be_learned() -> None:
    writer = make_writer(3)
    said: dict[str, Counter[Rule]] = {machine: Counter() for machine in MACHINES}
    for _ in range(2000):
        for entry in writer.book():
            said[entry.machine][entry.rule] += 1
    for counts in said.values():
        assert set(counts) == set(RULES)
        assert max(counts.values()) < 0.15 * sum(counts.values())


def topic(says: Rule | None, truth: Rule, tried: Rule) -> Topic:
    return Topic("m7", says and Entry("m7", says, "e00001"), tuple("RBYG"), truth, tried)


def test_an_entry_is_judged_by_the_truth_and_refuted_by_the_trial() -> None:
    one, two, three = RULES[:3]
    for says, truth, tried, verdict, unrefuted in (
        (one, one, two, "helpful", one),
        (one, two, three, "harmful", one),
        (one, two, one, "harmful", None),
    ):
        about = topic(says, truth, tried)
        assert about.verdict == (about.entry, verdict)
        assert about.unrefuted == unrefuted
    assert topic(None, two, one).verdict is None
    assert topic(None, two, one).unrefuted is None


def test_a_topic_is_about_the_latest_entry_and_is_never_tried_by_the_truth() -> None:
    writer = make_writer(4)
    for _ in range(300):
        book = writer.book()
        about = writer.topic(writer.rng.choice(book).machine, book, trust=1.0)
        latest = [entry for entry in book if entry.machine == about.machine][-1]
        assert about.entry == latest
        assert about.truth == latest.rule
        assert about.tried != about.truth


def test_after_evidence_without_an_insight_the_evidence_is_not_what_decides() -> None:
    """Inferring and applying in one pass is left to chance, so that evidence takes a reflection."""
    writer, right = make_writer(5), 0
    for _ in range(1000):
        _, sections, answer = ASKED["try_another"](writer, "m7", [])
        right += any(
            sections.feedback == evidence("m7", rule) and answer == response("m7", rule, sections.question.split()[3:])
            for rule in RULES
        )
    assert right < 80  # half of a thousand show evidence, and one guess in fifteen is right


def test_playbooks_keep_to_their_longest_and_to_names_that_exist() -> None:
    writer = make_writer(6, max_entries=8)
    for _ in range(300):
        book = writer.book()
        assert 1 <= len(book) <= 8
        numbers = [int(entry.id[1:]) for entry in book]
        assert numbers == sorted(set(numbers))
        assert max(numbers) <= MAX_ENTRIES_EVER
    assert len(writer.book(64)) == 64


def test_all_prompts_about_one_playbook_begin_with_it() -> None:
    """What they share can then be computed once."""
    writer = make_writer(7)
    book = writer.book(12)
    shown = "book " + " ; ".join(f"{entry.lesson} {entry.id}" for entry in book) + " ; "
    for kind in ASKED:
        template, sections, _ = ASKED[kind](writer, book[0].machine, book)
        assert writer.prompt(template, with_entries(sections, book)).startswith(shown)


def test_batches_are_seeded_hold_about_their_tokens_and_learn_only_the_models_turns() -> None:
    tokenizer = micro_tokenizer()
    mix = {"repeat": 1.0, "recall": 1.0, "converse": 1.0}
    first, again = (next(batches(make_writer(8, 8), tokenizer, mix, 1000)) for _ in range(2))
    assert first.ids.equal(again.ids)
    for batch in batches(make_writer(8, 8), tokenizer, mix, 1000):
        assert batch.ids.numel() <= 1000 or len(batch.ids) == 1
        assert not batch.is_learned[batch.ids == tokenizer.pad_token_id].any()
        users = batch.ids == tokenizer.convert_tokens_to_ids("<|user|>")
        assert not batch.is_learned[users].any()
