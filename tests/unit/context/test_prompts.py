from __future__ import annotations

from pathlib import Path

import pytest

from resd_lightning.config import ConfigError
from resd_lightning.context.playbook import PlaybookEntry
from resd_lightning.context.prompts import SECTION_NAMES, TEMPLATES, PromptTemplates, Sections
from resd_lightning.records import Message, Reflection

ENTRIES = (
    PlaybookEntry("e00002", "formulas", "Add.", helpful=3, harmful=1),
    PlaybookEntry("e00007", "others", "Wait."),
)
REFLECTION = Reflection("the insight", "the analysis", "the error", "the cause", "the approach")


def test_names_are_those_of_sections_that_hold_something() -> None:
    assert Sections("q").names() == frozenset()
    full = Sections("q", ENTRIES, REFLECTION, "trial", "feedback", "solution")
    assert full.names() == {"playbook", "reflection", "trial", "feedback", "solution"}
    assert Sections("q", trial="t", solution="s").names() == {"trial", "solution"}


def test_a_section_is_taken_out_and_the_others_stay() -> None:
    full = Sections("q", ENTRIES, REFLECTION, "trial", "feedback", "solution")
    for name in SECTION_NAMES:
        assert full.without(name).names() == full.names() - {name}
        assert full.only(name).names() == {name}
        assert full.without(name).question == full.only(name).question == "q"


@pytest.mark.parametrize("folder", [None, "micro"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_every_shipped_template_shows_the_question_and_all_lessons(name: str, folder: str | None) -> None:
    text = PromptTemplates(folder).render(name, Sections("The question?", ENTRIES, REFLECTION, "T", "F", "S"))
    assert "The question?" in text
    assert "Wait." in text
    assert text == text.strip()


def test_curator_reads_statistics_and_the_whole_reflection() -> None:
    text = PromptTemplates().render("curate", Sections("q", ENTRIES, REFLECTION))
    assert "- [e00002 | helped 3, misled 1] (formulas) Add.\n- [e00007 | helped 0, misled 0] (others) Wait." in text
    for part in ("the insight", "the analysis", "the error", "the cause", "the approach"):
        assert part in text
    assert "strategies, formulas, code_snippets, common_mistakes, heuristics, context_clues, others" in text


def test_curator_is_told_only_of_operations_it_may_use() -> None:
    only_add = PromptTemplates().render("curate", Sections("q"))
    some = PromptTemplates(operations=("ADD", "DELETE")).render("curate", Sections("q"))
    assert "The playbook is empty." in only_add
    for text, absent in ((only_add, ("UPDATE", "MERGE", "DELETE")), (some, ("UPDATE", "MERGE"))):
        assert not any(name in text for name in absent)
    assert '{"type": "DELETE", "id": "an entry\'s id"}' in some


def test_teacher_template_leaves_out_what_is_empty() -> None:
    templates = PromptTemplates()
    assert templates.render("teacher", Sections("Just this?")) == "Just this?"
    assert templates.render("teacher", Sections("q", solution="42")) == (
        "q\n\nFor reference, a correct response to this question:\n\n42\n\nNow answer the question above correctly."
    )


def test_shared_lessons_come_first_in_the_teacher_prompt() -> None:
    templates = PromptTemplates()
    one, other = (templates.render("teacher", Sections(q, ENTRIES, feedback="f")) for q in ("first", "second"))
    assert one.index("first") > one.index("Wait.")
    assert one[: one.index("first")] == other[: other.index("second")]


def test_text_of_models_and_datasets_is_never_parsed_as_a_template() -> None:
    hostile = "{{ 7 * 7 }} {% for x in y %} {# gone? #} <b> & {0} {braces} %s"
    entry = PlaybookEntry("e00001", "others", hostile)
    for name in TEMPLATES:
        sections = Sections(hostile, (entry,), Reflection(hostile), hostile, hostile, hostile)
        assert hostile in PromptTemplates().render(name, sections)
    text = PromptTemplates().render(
        "teacher", Sections(hostile, (entry,), Reflection(hostile), hostile, hostile, hostile)
    )
    assert text.count(hostile) == 6
    assert "49" not in text


def test_only_the_last_message_of_a_chat_is_replaced() -> None:
    chat = (Message(role="system", content="Be brief."), Message(role="user", content="q"))
    messages = PromptTemplates().messages("teacher", chat, Sections("q", feedback="No."))
    assert messages[0] == chat[0]
    assert messages[1]["role"] == "user"
    assert messages[1]["content"].startswith("q\n\nWhat the environment said")


def test_a_folder_replaces_single_templates(tmp_path: Path) -> None:
    (tmp_path / "teacher.jinja").write_text("Q: {{ question }} ({{ entries | length }} lessons)\n")
    templates = PromptTemplates(str(tmp_path))
    assert templates.render("teacher", Sections("why?", ENTRIES)) == "Q: why? (2 lessons)"
    assert templates.render("reflect", Sections("why?")) == PromptTemplates().render("reflect", Sections("why?"))


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{{ playbok }}", "'playbok' is undefined"),
        ("{% if question %}", "Unexpected end of template"),
        ("{{ reflection.insight }}", "no attribute 'insight'"),
        ("{{ question.__class__.__mro__ }}", "unsafe"),
    ],
)
def test_a_faulty_template_is_refused_before_the_run_by_name(tmp_path: Path, template: str, complaint: str) -> None:
    (tmp_path / "tag.jinja").write_text(template)
    with pytest.raises(ConfigError, match=rf"model\.context\.templates: tag\.jinja: .*{complaint}"):
        PromptTemplates(str(tmp_path))


def test_a_missing_folder_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.context\.templates: no folder at .*nowhere"):
        PromptTemplates(str(tmp_path / "nowhere"))
