"""Ten thousand answers that went wrong: nothing raises, nothing corrupts the playbook, everything is counted."""

import json
import math
import random
from collections import Counter

import pytest

from resd_lightning.context.answers import ProblemKind, clean_text
from resd_lightning.context.concise import concise
from resd_lightning.context.curate import (
    MAX_ENTRY_CHARS,
    OPERATION_NAMES,
    Proposal,
    apply_operations,
    parse_operations,
)
from resd_lightning.context.playbook import SECTIONS, Playbook
from resd_lightning.context.reflect import TAG_KINDS, parse_reflection, parse_tags

NUM_ANSWERS = 10_000
WORDS = ("m17", "reverse", "shift", "{{ x }}", "{% if %}", "<b>", "caf\u00e9", "3.5", '"', "\\", "it's", "}", "\n")
NASTY = (
    None, True, 7, -1.5, math.nan, math.inf, "", " ", "\x00\x1b", "\ud800", [], {}, [[]], {"": {"\u0000": 1}}, "e99999",
    ["e00001", False], "{{ config }}", "x" * 9000, "</think>", "<think>", {"id": {"tag": []}}, 10**30, "e00001\ud834",
)  # fmt: skip
NOISE = "{}[]\",:'\\/*#\n\t `abcNTn01-.\u00e9\ud800\x00\x85\u201c\u2026<>"


def lesson(rng):
    return " ".join(rng.choices(WORDS, k=rng.randint(1, 12)))


def some_id(rng, ids):
    return rng.choice(ids) if ids and rng.random() < 0.9 else f"e{rng.randint(1, 60):05d}"


def valid_tags(rng, ids):
    tagged = {some_id(rng, ids) for _ in range(rng.randint(0, 4))}
    return [{"id": id_, "tag": rng.choice(TAG_KINDS)} for id_ in sorted(tagged)]


def valid_operation(rng, ids):
    name = rng.choice(("ADD", "ADD", *OPERATION_NAMES))
    content, section = lesson(rng) + " z", rng.choice(SECTIONS)
    return {
        "ADD": {"type": name, "section": section, "content": content},
        "UPDATE": {"type": name, "id": some_id(rng, ids), "content": content},
        "MERGE": {"type": name, "ids": [some_id(rng, ids), some_id(rng, ids)], "section": section, "content": content},
        "DELETE": {"type": name, "id": some_id(rng, ids)},
    }[name]


def valid_answer(rng, kind, ids):
    if kind == "reflect":
        return {"analysis": lesson(rng), "key_insight": lesson(rng) + " z", "tags": valid_tags(rng, ids)}
    if kind == "tag":
        return {"tags": valid_tags(rng, ids)}
    return {"reasoning": lesson(rng), "operations": [valid_operation(rng, ids) for _ in range(rng.randint(0, 4))]}


def spoil_value(rng, value):
    """Replace something in the structure by something of another type, or by a key nobody asked for."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        choice = rng.random()
        if choice < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if choice < 0.2:
            return {
                (rng.choice(("", "\u0000", "{{k}}", key.upper(), key + "s")) if k == key else k): v
                for k, v in value.items()
            }
        return {**value, key: spoil_value(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        return [spoil_value(rng, item) if i == place else item for i, item in enumerate(value)]
    return rng.choice(NASTY)


def spoil_text(rng, text):
    for _ in range(rng.randint(1, 6)):
        start = rng.randrange(len(text) + 1)
        end = min(len(text), start + rng.randint(0, 6))
        text = text[:start] + rng.choice(("", rng.choice(NOISE), text[start:end] * 2)) + text[end:]
    return text


def wrapped(rng, text):
    return rng.choice(
        (
            f"```json\n{text}\n```",
            f"<think>a <think>{text}</think> b</think>{text}",
            f"<think>{text}",
            f"{text}</think>",
            f"Sure {{really}}: {text} and {{more}}",
            f"[{text}]",
            json.dumps(text),
            text + text,
            "{{ " + text + " }}",
            '{"a": ' * rng.randint(1, 60) + text,
            text[: rng.randrange(len(text) + 1)],
            " " * rng.randint(0, 3),
            text.replace('"', "'"),
            text.replace("}", ",}"),
            text.replace("{", "{ /* why */ "),
        )
    )


def malformed(rng, kind, ids):
    answer = valid_answer(rng, kind, ids)
    for _ in range(rng.choice((0, 1, 1, 3))):
        answer = spoil_value(rng, answer)
    text = json.dumps(answer, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.4:
        text = spoil_text(rng, text)
    if rng.random() < 0.4:
        text = wrapped(rng, text)
    return text if rng.random() > 0.001 else text + "x" * 200_001


def assert_intact(playbook, before):
    ids = [entry.id for entry in playbook.entries]
    assert len(set(ids)) == len(ids)
    assert playbook.next_number >= before.next_number
    assert all(int(entry.id[1:]) < playbook.next_number for entry in playbook.entries)
    for entry in playbook.entries:
        assert min(entry.helpful, entry.harmful) >= 0
        assert entry.section in SECTIONS
        assert 0 < len(entry.text) <= MAX_ENTRY_CHARS
        assert clean_text(entry.text) == entry.text
        assert entry.last_step <= playbook.step


def test_malformed_answers_never_raise_never_corrupt_and_are_all_counted():
    rng = random.Random(0)
    playbook = Playbook()
    counts: Counter[str] = Counter()
    num_problems = num_read = 0
    for number in range(NUM_ANSWERS):
        before = playbook
        kind = rng.choice(("reflect", "tag", "curate"))
        text = malformed(rng, kind, [entry.id for entry in playbook.entries])
        if kind == "curate":
            parsed = parse_operations(text, allowed=OPERATION_NAMES if number % 10 else ("ADD",))
            playbook, applied = apply_operations(playbook, [Proposal(parsed.operations, number, str(number))])
            assert [record.operation for record in applied] == list(parsed.operations)
            problems = (*parsed.problems, *(record.problem for record in applied if record.problem))
            is_read = bool(parsed.operations)
        else:
            if kind == "reflect":
                reflection = parse_reflection(text)
                # Nothing disappears without a word.
                assert reflection.reflection is not None or reflection.problems
                tags, problems = (reflection.reflection.tags if reflection.reflection else ()), reflection.problems
                is_read = reflection.reflection is not None
                if reflection.reflection:
                    assert reflection.reflection.key_insight
                    assert clean_text(reflection.reflection.key_insight) == reflection.reflection.key_insight
            else:
                parsed_tags = parse_tags(text)
                tags, problems = parsed_tags.tags, parsed_tags.problems
                is_read = bool(tags)
            playbook, unknown = playbook.apply_tags(tags)
            problems = (*problems, *unknown)
        num_read += is_read
        num_problems += len(problems)
        counts.update(problem.kind for problem in problems)
        for problem in problems:
            problem.detail.encode()  # a transcript can store it
        assert_intact(playbook, before)
        if number % 20 == 0:
            stored = playbook.to_json().encode()
            assert Playbook.from_json(stored.decode()) == playbook
            assert Playbook.from_dict(playbook.to_dict()).fingerprint() == playbook.fingerprint()
            kept = concise(playbook.entries, method="staleness", max_entries=25, step=playbook.step, rng=rng)
            playbook = playbook.replace_entries(kept).next_step()
    assert counts.total() == num_problems
    # Every kind of trouble occurs, so that none of them goes untried; and plenty is read all the same.
    assert set(counts) == set(ProblemKind)
    assert num_read > NUM_ANSWERS // 5


@pytest.mark.parametrize("kind", ["reflect", "tag", "curate"])
def test_valid_answers_are_read_without_a_problem(kind):
    rng = random.Random(1)
    for _ in range(300):
        text = json.dumps(valid_answer(rng, kind, []), ensure_ascii=rng.random() < 0.5, indent=rng.choice((None, 2)))
        if kind == "curate":
            assert parse_operations(text, allowed=OPERATION_NAMES).problems == ()
        else:
            assert (parse_reflection if kind == "reflect" else parse_tags)(text).problems == ()
