"""A playbook as Markdown, for people to read, write and review; it reads back to the same playbook."""

from __future__ import annotations

import json
import re

from resd_lightning.context.playbook import Playbook, PlaybookEntry

_HEADING = re.compile(r"## (\S+) \((\S+)\)")
_FIELD = re.compile(r"- (\w+): (.+)")


def to_markdown(playbook: Playbook) -> str:
    """Return a heading per entry, its fields as a list of JSON values, and its text as a quotation.

    Entries stand in the playbook's order. Fields at their default are left out, but for the counts.
    """
    parts = [f"# Playbook\n\n- step: {playbook.step}\n- next_number: {playbook.next_number}\n"]
    for entry in playbook.entries:
        fields = _fields(entry)
        listed = "".join(f"- {name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in fields.items())
        quoted = "".join(f"> {line}\n" if line else ">\n" for line in entry.text.split("\n"))
        parts.append(f"## {entry.id} ({entry.section})\n\n{listed}\n{quoted}")
    return "\n".join(parts)


def from_markdown(text: str) -> Playbook:
    """Return the playbook that `to_markdown` wrote, or a person in its format; see `Playbook.from_dict`.

    Raises:
        ValueError: A line is none of the format (names the line), or an entry is malformed (names entry and field).
    """
    if text.count("\r\n") == text.count("\n"):  # an editor ended all lines its way; else \r belongs to a lesson
        text = text.replace("\r\n", "\n")
    about: dict[str, object] = {}
    entries: list[dict[str, object]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        where = f"playbook Markdown, line {number}"
        if not line.strip() or line == "# Playbook":
            continue
        target = entries[-1] if entries else about
        if heading := _HEADING.fullmatch(line):
            entries.append({"id": heading[1], "section": heading[2]})
        elif line.startswith(">") and entries:
            quoted = line[2:] if line.startswith("> ") else line[1:]
            target["text"] = f"{target['text']}\n{quoted}" if "text" in target else quoted
        elif field := _FIELD.fullmatch(line):
            if field[1] in target:
                raise ValueError(f"{where}: {field[1]} stands twice")
            try:
                target[field[1]] = json.loads(field[2])
            except json.JSONDecodeError as error:
                raise ValueError(f"{where}: {field[1]} must be a JSON value, got {field[2]!r}") from error
        else:
            raise ValueError(
                f"{where}: expected '## id (section)', '- field: value', or a line of an entry's text behind '> ', "
                f"got {line!r}"
            )
    return Playbook.from_dict({**about, "entries": entries})


def _fields(entry: PlaybookEntry) -> dict[str, object]:
    optional = {
        "created_update": entry.created_update,
        "sources": list(entry.sources),
        "merged_from": list(entry.merged_from),
    }
    counts = {"helpful": entry.helpful, "harmful": entry.harmful, "last_step": entry.last_step}
    return {**counts, **{name: value for name, value in optional.items() if value}}
