"""The model that the package ships: its size, its files, what it can do, and what it can't know."""

from __future__ import annotations

import random

import pytest

from resd_lightning.config import PolicyConfig
from resd_lightning.micro.capabilities import Speaker, accuracy_without_context, cases_of, chained, says, section_shares
from resd_lightning.micro.documents import DocumentWriter
from resd_lightning.micro.shipped import FOLDER, MICRO_LM
from resd_lightning.micro.tokens import micro_tokenizer
from resd_lightning.policy.load import load_tokenizer, read_base_facts


@pytest.fixture(scope="module")
def speaker() -> Speaker:
    return Speaker(FOLDER)


def make_writer(seed: int) -> DocumentWriter:
    return DocumentWriter(random.Random(seed), max_entries=32)


def test_it_takes_at_most_eight_megabytes_and_no_training_state_is_shipped() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8e6
    assert not [path.name for path in files if path.suffix == ".pt"]
    assert (FOLDER / "README.md").is_file()


def test_its_name_is_a_base_like_any_other() -> None:
    config = PolicyConfig(MICRO_LM, dtype="float32")
    assert read_base_facts(config).vocab_size == len(micro_tokenizer())
    assert load_tokenizer(config).get_vocab() == micro_tokenizer().get_vocab()
    assert load_tokenizer(config).chat_template == micro_tokenizer().chat_template


def test_without_context_it_guesses_in_every_world(speaker: Speaker) -> None:
    """One answer in sixteen is right: no machine's rule is in the weights."""
    shares = [accuracy_without_context(speaker, mapping_seed) for mapping_seed in (*range(8), *range(100, 120))]
    # 28 x 64 answers, each right with probability 1/16: the mean has a standard deviation of 0.006, one world 0.03
    assert 0.035 < sum(shares) / len(shares) < 0.09
    assert max(shares) < 0.2


def test_it_finds_a_rule_in_a_playbook_and_applies_it(speaker: Speaker) -> None:
    assert speaker.share_right(cases_of(make_writer(1), "look_up", says, 100, size=32)) > 0.85


def test_its_own_reflection_leads_it_to_the_answer(speaker: Speaker) -> None:
    assert chained(speaker, make_writer(2), 100) > 0.85


def test_evidence_alone_does_not_lead_it_to_the_answer(speaker: Speaker) -> None:
    shares = section_shares(speaker, make_writer(3), 100)
    assert max(shares["nothing"], shares["trial and evidence"]) < 0.3
    assert shares["reflection"] > 0.85
    assert shares["solution"] > 0.85
