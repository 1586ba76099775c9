import json

import pytest

from resd_lightning.context.reflect import REFLECTION_SCHEMA, TAGS_SCHEMA, parse_reflection, parse_tags
from resd_lightning.records import Reflection, Tag


def kinds(parsed):
    return [str(problem.kind) for problem in parsed.problems]


def test_a_whole_answer_becomes_a_reflection():
    answer = {
        "analysis": "It walked left.",
        "error": "Wrong end.",
        "root_cause": "Misread the rule.",
        "right_approach": "Walk right.",
        "key_insight": " m17 reverses\u0000 ",
        "tags": [
            {"id": "e00001", "tag": "helpful"},
            {"id": "[E00002]", "tag": " Harmful"},
            {"id": "e3", "tag": "neutral"},
        ],
    }
    parsed = parse_reflection("<think>hm</think>" + json.dumps(answer))
    assert parsed.problems == ()
    assert parsed.reflection == Reflection(
        key_insight="m17 reverses",
        analysis="It walked left.",
        error="Wrong end.",
        root_cause="Misread the rule.",
        right_approach="Walk right.",
        tags=(Tag("e00001", "helpful"), Tag("E00002", "harmful"), Tag("e3", "neutral")),
    )


def test_other_names_for_the_fields_are_understood():
    parsed = parse_reflection(
        '{"reasoning": "r", "error_identification": "e", "root_cause_analysis": "c", "correct_approach": "a",'
        ' "Insight": "i", "bullet_tags": [{"bullet_id": "e00001", "label": "helpful"}]}'
    )
    assert parsed.problems == ()
    assert parsed.reflection == Reflection("i", "r", "e", "c", "a", (Tag("e00001", "helpful"),))


def test_an_insight_without_tags_is_still_a_reflection():
    parsed = parse_reflection('{"key_insight": "i"}')
    assert parsed.reflection == Reflection("i")
    assert kinds(parsed) == ["missing_field"]


@pytest.mark.parametrize(
    ("insight", "kind"),
    [
        ("null", "missing_field"),
        ('" \\u0007 "', "empty_text"),
        ("[1]", "wrong_type"),
        (f'"{"x" * 8001}"', "text_too_long"),
    ],
)
def test_without_an_insight_there_is_no_reflection(insight, kind):
    parsed = parse_reflection(f'{{"key_insight": {insight}, "tags": [{{"id": "e1", "tag": "helpful"}}]}}')
    assert parsed.reflection is None
    assert kinds(parsed) == [kind]


def test_an_optional_text_of_a_wrong_type_is_dropped_and_reported():
    parsed = parse_reflection('{"key_insight": "i", "analysis": ["a"], "error": "", "root_cause": null, "tags": []}')
    assert parsed.reflection == Reflection("i")
    assert kinds(parsed) == ["wrong_type"]


@pytest.mark.parametrize(
    ("item", "kind"),
    [
        ('"e00001"', "wrong_type"),
        ('{"id": true, "tag": "helpful"}', "wrong_type"),
        ('{"id": 7, "tag": "helpful"}', "wrong_type"),
        ('{"id": "e2", "tag": 1}', "wrong_type"),
        ('{"tag": "helpful"}', "missing_field"),
        ('{"id": "e2"}', "missing_field"),
        ('{"id": "[]", "tag": "helpful"}', "empty_text"),
        (f'{{"id": "{"e" * 101}", "tag": "helpful"}}', "text_too_long"),
        ('{"id": "e2", "tag": "very helpful"}', "unknown_tag"),
        ('{"id": "E1", "tag": "harmful"}', "duplicate"),
    ],
)
def test_one_bad_tag_is_dropped_and_the_rest_kept(item, kind):
    good = '{"id": "e1", "tag": "helpful"}'
    for parsed in (
        parse_tags(f'{{"tags": [{good}, {item}]}}'),
        parse_reflection(f'{{"key_insight": "i", "tags": [{good}, {item}]}}'),
    ):
        assert kinds(parsed) == [kind]
    assert parse_tags(f'{{"tags": [{good}, {item}]}}').tags == (Tag("e1", "helpful"),)
    assert parsed.reflection.tags == (Tag("e1", "helpful"),)


def test_tags_of_a_wrong_type_are_no_tags():
    assert kinds(parse_tags('{"tags": "helpful"}')) == ["wrong_type"]
    assert kinds(parse_tags('{"x": 1}')) == ["missing_field"]
    assert kinds(parse_tags("no idea")) == ["no_json"]
    assert parse_tags('{"tags": []}').problems == ()


def test_an_unreadable_answer_is_no_reflection():
    parsed = parse_reflection("I could not find the error.")
    assert parsed.reflection is None
    assert kinds(parsed) == ["no_json"]


def test_schemas_require_insight_and_tags_only_and_are_json():
    assert REFLECTION_SCHEMA["required"] == ["key_insight", "tags"]
    assert TAGS_SCHEMA["required"] == ["tags"]
    assert json.loads(json.dumps(REFLECTION_SCHEMA)) == REFLECTION_SCHEMA
    assert set(REFLECTION_SCHEMA["properties"]) == {
        "analysis",
        "error",
        "root_cause",
        "right_approach",
        "key_insight",
        "tags",
    }
