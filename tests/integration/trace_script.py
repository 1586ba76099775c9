"""The story of eight updates: who answers what. test_scripted_trace.py says what must come of it."""

from __future__ import annotations

import json

from toy import Lines

ANSWERS = {
    "a1": 2, "a2": 3, "a3": 4,
    "b1": 5, "b2": 6, "b3": 7,
    "c1": 8, "c2": 9, "c3": 10,
    "d1": 11, "d2": 12, "d3": 13,
}  # fmt: skip


def tags(**verdicts: str) -> list[dict[str, str]]:
    return [{"id": id_, "tag": tag} for id_, tag in verdicts.items()]


def tagged(**verdicts: str) -> str:
    return json.dumps({"tags": tags(**verdicts)})


def reflection(insight: str, **verdicts: str) -> str:
    return json.dumps({"key_insight": insight, "tags": tags(**verdicts)})


def adds(*lessons: tuple[str, str]) -> str:
    operations = [{"type": "ADD", "section": section, "content": text} for section, text in lessons]
    return json.dumps({"reasoning": "r", "operations": operations})


LINES: Lines = {
    # Update 0: three failures, and an empty playbook.
    ("rollout", 0, "a1"): "one",
    ("rollout", 0, "a2"): "1",
    ("rollout", 0, "a3"): "<think>three</think>5",
    ("reflect", 0, "a1"): reflection("count on fingers", e00009="helpful"),  # there is no e00009
    ("reflect", 0, "a2"): "I could not tell.",
    ("reflect", 0, "a3"): reflection("order does not matter"),
    ("curate", 0, "a1"): adds(
        ("strategies", "Count on your fingers before you answer."), ("formulas", "A sum is larger than both parts.")
    ),
    ("curate", 0, "a3"): adds(
        ("heuristics", "count on your fingers, before you answer"), ("others", "Check the sign of each part.")
    ),
    # Update 1: a1 succeeds; nothing is known of a3.
    ("rollout", 1, "a1"): "<think>one and one</think>2",
    ("rollout", 1, "a2"): "33",
    ("rollout", 1, "a3"): "?",
    ("tag", 1, "a1"): tagged(e00001="helpful", e00003="neutral"),
    ("reflect", 1, "a2"): reflection("write the sum down", e00001="helpful", e00002="harmful"),
    ("reflect", 1, "a3"): tagged(e00001="harmful"),  # no insight, so no reflection, so no tags
    ("curate", 1, "a2"): "Nothing to add.",
    # Update 2: the next prompts.
    ("rollout", 2, "b1"): "5",
    ("rollout", 2, "b2"): "<think>ok</think>6",
    ("rollout", 2, "b3"): "70",
    ("tag", 2, "b1"): tagged(e00003="harmful", e00001="helpful"),
    ("tag", 2, "b2"): "all fine",
    ("reflect", 2, "b3"): reflection("carry the ten", e00003="helpful", e00001="neutral"),
    ("curate", 2, "b3"): adds(("code_snippets", "Carry the ten when digits overflow.")),
    # Update 3: b1 and b2 fail at what they could do before.
    ("rollout", 3, "b1"): "55",
    ("rollout", 3, "b2"): "600",
    ("rollout", 3, "b3"): "7",
    ("tag", 3, "b3"): tagged(),
    ("reflect", 3, "b1"): reflection("one digit is enough", e00003="helpful", e00004="helpful"),
    ("reflect", 3, "b2"): "[1, 2]",
    ("curate", 3, "b1"): adds(
        ("strategies", "Answer with one digit where the sum is below ten."),
        ("common_mistakes", "Do not repeat a digit."),
        ("context_clues", "The question names both parts."),
    ),
    # Update 4
    ("rollout", 4, "c1"): "8",
    ("rollout", 4, "c2"): "?",
    ("rollout", 4, "c3"): "100",
    ("tag", 4, "c1"): tagged(e00005="helpful", e00006="harmful"),
    ("reflect", 4, "c2"): reflection("say something", e00007="neutral"),
    ("reflect", 4, "c3"): reflection("ten has two digits"),
    ("curate", 4, "c2"): adds(
        ("strategies", "answer with one digit, where the sum is below ten"), ("wisdom", "A question wants a number.")
    ),
    ("curate", 4, "c3"): '{"operations": "none"}',
    # Update 5: all succeed.
    ("rollout", 5, "c1"): "<think>again</think>8",
    ("rollout", 5, "c2"): "9",
    ("rollout", 5, "c3"): "10",
    ("tag", 5, "c1"): tagged(e00004="helpful"),
    ("tag", 5, "c2"): tagged(e00001="helpful"),  # pruned two updates ago
    ("tag", 5, "c3"): tagged(e00005="helpful", E00005="harmful"),
    # Update 6: all fail, nobody knows why.
    ("rollout", 6, "d1"): "?",
    ("rollout", 6, "d2"): "?",
    ("rollout", 6, "d3"): "?",
    ("reflect", 6, "d1"): "{}",
    ("reflect", 6, "d2"): "",
    ("reflect", 6, "d3"): "[]",
    # Update 7: the last; d3 runs into the response's limit.
    ("rollout", 7, "d1"): "1111",
    ("rollout", 7, "d2"): "?",
    ("rollout", 7, "d3"): "3" * 60,
    ("reflect", 7, "d1"): reflection("two digits", e00004="harmful"),
    ("reflect", 7, "d2"): reflection("add one"),
    ("reflect", 7, "d3"): reflection("stop in time"),
    ("curate", 7, "d1"): adds(("strategies", "Answer with one digit where the sum is below ten")),
    ("curate", 7, "d2"): adds(("formulas", "1 + n is the number after n.")),
    ("curate", 7, "d3"): adds(("strategies", "1 + n is the number after n")),
}
