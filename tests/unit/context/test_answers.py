import time

import pytest

from resd_lightning.context.answers import MAX_ANSWER_CHARS, clean_text, plain_name, read_json_object

EXPECTED = ("keyinsight", "tags")


def read(text):
    reading = read_json_object(text, expected=EXPECTED)
    return reading.fields, [str(problem.kind) for problem in reading.problems]


@pytest.mark.parametrize(
    "text",
    [
        '{"key_insight": "a", "tags": []}',
        '<think>{"key_insight": "no"}</think>\n{"key_insight": "a", "tags": []}',
        'Sure!\n```json\n{"key_insight": "a", "tags": []}\n```\nDone.',
        '{"Key Insight": "a", "TAGS": []}',
        'The set {1, 2}, \\frac{1}{2}, {{ name }} and {x: 3} aside: {"key_insight": "a", "tags": []}',
        'Draft: {"key_insight": "b", "tags": []}. Better: {"key_insight": "a", "tags": []}',
        '{"key_insight": "a", "tags": []} For instance {"id": "e00001", "tag": "helpful"} was no use.',
        '{"key_insight": "b", "key_insight": "a", "tags": []}',
        '{{"key_insight": "a", "tags": []}}',
    ],
)
def test_an_object_is_found_among_prose_fences_and_drafts(text):
    assert read(text) == ({"keyinsight": "a", "tags": []}, [])


@pytest.mark.parametrize(
    "text",
    [
        '{"key_insight": "a", "tags": [],}',
        "{'key_insight': 'a', 'tags': []}",
        "{key_insight: 'a', tags: []}",
        '{"key_insight": "a", // why\n "tags": [] /* none */}',
        "{\u201ckey_insight\u201d: \u201ca\u201d, \u201ctags\u201d: []}",
        '{"key_insight": "a" "tags": []}',
    ],
)
def test_a_broken_object_with_a_clear_meaning_is_mended_and_reported(text):
    assert read(text) == ({"keyinsight": "a", "tags": []}, ["repaired_json"])


def test_python_literals_are_read():
    fields, kinds = read("{'key_insight': None, 'tags': True}")
    assert (fields, kinds) == ({"keyinsight": None, "tags": True}, ["repaired_json"])


@pytest.mark.parametrize(
    ("text", "insight"),
    [
        ('{"key_insight": "use "copy" here", "tags": []}', 'use "copy" here'),
        ('{"key_insight": "use 6" tape", "tags": []}', 'use 6" tape'),
        ('{"key_insight": "\\frac{a}{b} is \\beta", "tags": []}', "\\frac{a}{b} is \\beta"),
        ('{"key_insight": "over\ntwo lines", "tags": []}', "over\ntwo lines"),
        ('{"key_insight": "braces } and ] and {", "tags": []}', "braces } and ] and {"),
        ('{"key_insight": "\\ud83d\\ude00", "tags": []}', "\U0001f600"),
    ],
)
def test_texts_survive_quotes_backslashes_and_brackets(text, insight):
    fields, _ = read(text)
    assert fields["keyinsight"] == insight
    assert fields["tags"] == []


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ('{"analysis": "done", "tags": [], "key_insight": "hello wor', {"analysis": "done", "tags": []}),
        ('{"tags": [], "key_insight": "hello"', {"tags": [], "keyinsight": "hello"}),
        ('```json\n{"tags": [], "key_insight": "hello"\n```', {"tags": [], "keyinsight": "hello"}),
        ('{"tags": [], "key_ins', {"tags": []}),
        (
            '{"tags": [{"id": "e1", "tag": "helpful"}, {"id": "e2", "ta',
            {"tags": [{"id": "e1", "tag": "helpful"}, {"id": "e2"}]},
        ),
        ('{"tags": [{"id": "e1"}', {"tags": [{"id": "e1"}]}),
        ('{"tags": ["a", "b', {"tags": ["a"]}),
        ('{"tags": [], "key_insight": "turn {a}', {"tags": []}),
    ],
)
def test_a_cut_object_keeps_its_complete_values_only(text, fields):
    assert read(text) == (fields, ["truncated_json"])


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        ('<think>{"key_insight": "a"}', "empty"),
        ("There is nothing to say.", "no_json"),
        ("{% for x in y %}{{ x }}{% endfor %}", "no_json"),
        ('{"key_insight": "write "}" here", "tags": []}', "no_json"),
        ("[]", "not_an_object"),
        ('```json\n["key_insight"]\n```', "not_an_object"),
        ('"key_insight"', "not_an_object"),
        ("null", "not_an_object"),
        ("3", "not_an_object"),
        ('{"key_insight": "hel', "truncated_json"),
        ('{"key_insight": ' + "[" * 50, "too_deep"),
        ('{"tags": ' + "[" * 40 + "]" * 40 + "}", "too_deep"),
        ('{"key_insight": ' * 50_00, "too_deep"),
        ("x" * (MAX_ANSWER_CHARS + 1), "too_long"),
        ('{"key_insight": "a", "x": "' + "x" * 60_000 + '",}', "too_long"),
    ],
)
def test_what_cannot_be_read_is_named(text, kind):
    assert read(text) == (None, [kind])


def test_an_object_without_an_expected_field_is_left_to_the_caller():
    assert read('{"reply": 3}') == ({"reply": 3}, [])
    assert read("{}") == ({}, [])


def test_long_numbers_and_nan_are_values_of_a_wrong_type_not_errors():
    fields, kinds = read('{"key_insight": ' + "9" * 10_000 + ', "tags": NaN}')
    assert kinds == []
    assert isinstance(fields["keyinsight"], float)


@pytest.mark.parametrize(
    "text",
    [
        "{" * 190_000,
        '{"a":' * 30_000,
        '{"a": "' + 'x" y ' * 35_000,
        '{"a":[' + "1," * 90_000,
        '{"a":1 ' * 30 + "1," * 90_000,
        '{"a":' + "(" * 90_000 + ")" * 90_000 + "}",
        '{"a":,}' * 25_000,
        '{"a":"' + "\\" * 190_000,
        "{" + " " * 190_000,
        "```" + " " * 190_000 + "x```",
        '"' * 190_000,
        ('{"a"' + " " * 1000) * 190,
    ],
    ids=range(12),
)
def test_hostile_answers_take_bounded_time(text):
    start = time.perf_counter()
    read(text)
    assert time.perf_counter() - start < 5.0


def test_clean_text_keeps_lines_and_tabs_and_drops_what_files_and_screens_cannot_hold():
    assert clean_text(" a\r\nb\rc\td\x00\x1b[31m\x7f\x85\ud800\n") == "a\nb\nc\td[31m"
    assert clean_text("e\u0301") == "\u00e9"
    assert clean_text("{{ x }}{% y %}") == "{{ x }}{% y %}"


def test_plain_names_forget_case_and_punctuation():
    assert plain_name("Key Insight") == plain_name("key_insight") == plain_name("keyInsight:") == "keyinsight"
