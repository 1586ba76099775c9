"""What a report says, from the files in run folders alone: plain objects that become JSON."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast

import yaml

from resd_lightning.config import ConfigError, differing, flat
from resd_lightning.context.files import read_playbooks
from resd_lightning.report.life import EntryLife, lives
from resd_lightning.run_folder import RunFolder, read_lines

Line = Mapping[str, object]
Series = tuple[list[int], list[float | None]]

CALL_KEYS = ("run_dir",)
"""Keys that differ between any two runs and say nothing of them."""

MAX_TOKENS = 2000
"""Shaded tokens of one response; each is an element of the page."""


class PromptVisits(TypedDict):
    """A training prompt, and where its rollouts are: update, line within the update, sample, reward."""

    id: str
    question: str
    visits: list[tuple[int, int, int, float]]


class Run(TypedDict):
    """One run, its rollouts left out."""

    name: str
    missing: list[str]
    facts: Mapping[str, object]
    metrics: Mapping[str, Mapping[str, float]]
    spent: Mapping[str, float]
    series: dict[str, Series]
    entries: list[EntryLife]
    prompts: list[PromptVisits]


@dataclass(frozen=True)
class Page:
    """All of a report.

    Attributes:
        runs: In the order they were named.
        differing: Configuration keys in which runs differ, with each run's value as text; None where it has none.
        rollouts: By run, then by update: its rollouts in order. The page reads an update's when they are looked at.
        texts: By run: the texts of its teachers' prompts, each once; all prompts of an update share a playbook.
    """

    runs: list[Run]
    differing: list[tuple[str, list[str | None]]]
    rollouts: list[dict[int, list[Line]]]
    texts: list[list[str]]


class Texts:
    """Texts by number, each once.

    Args:
        max_chars: Longest text kept whole.
    """

    def __init__(self, max_chars: int) -> None:
        self._max_chars = max_chars
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        """Return a text's number, a new one where it wasn't met before."""
        return self._numbers.setdefault(shorten(text, self._max_chars), len(self._numbers))

    def all(self) -> list[str]:
        """Return the texts in the order of their numbers."""
        return list(self._numbers)


def collect(folders: Sequence[Path], max_chars: int) -> Page:
    """Return what a report on these runs says.

    Args:
        folders: Of the runs.
        max_chars: Longest text kept whole.

    Raises:
        ConfigError: A folder holds no run, or a file in it is broken.
    """
    runs, rollouts, configs, texts = [], [], [], []
    for path in folders:
        folder = RunFolder(path)
        if not folder.metrics.is_file() and not folder.transcripts.is_file():
            raise ConfigError(f"run_dir {path} holds no run: neither {folder.metrics.name} nor a transcript in it")
        try:
            of_run = Texts(max_chars)
            run, by_update = _collect_run(folder, max_chars, of_run)
            configs.append(_config(folder))
        except (json.JSONDecodeError, yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise ConfigError(f"run_dir {path}: a file of it is broken ({type(error).__name__}: {error})") from error
        runs.append(run)
        rollouts.append(by_update)
        texts.append(of_run.all())
    return Page(runs, differing_keys(configs), rollouts, texts)


def _collect_run(folder: RunFolder, max_chars: int, texts: Texts) -> tuple[Run, dict[int, list[Line]]]:
    files = (folder.summary, folder.metrics, folder.transcripts, folder.diagnostics, folder.playbook, folder.config)
    summary: dict[str, object] = json.loads(folder.summary.read_text("utf-8")) if folder.summary.is_file() else {}
    by_update: dict[int, list[Line]] = defaultdict(list)
    prompts: dict[str, PromptVisits] = {}
    token_losses = _token_losses(read_lines(folder.diagnostics))
    lines = list(read_lines(folder.transcripts))
    for line in lines:
        update, example, sample = cast("int", line["update"]), cast("str", line["example"]), cast("int", line["sample"])
        own = by_update[update]
        if example not in prompts:
            messages = cast("list[dict[str, str]]", line["prompt"])
            question = "\n\n".join(message["content"] for message in messages)
            prompts[example] = {"id": example, "question": shorten(question, max_chars), "visits": []}
        prompts[example]["visits"].append((update, len(own), sample, cast("float", line["reward"])))
        losses = token_losses.get((update, example, sample))
        own.append({**slim_rollout(line, losses, max_chars), "teacher_prompt": prompt_parts(line, texts)})
    playbooks = read_playbooks(folder.playbook) if folder.playbook.is_file() else {}
    run: Run = {
        "name": str(folder.path),
        "missing": [file.name for file in files if not file.is_file()],
        "facts": {key: value for key, value in summary.items() if key not in ("metrics", "spent")},
        "metrics": cast("Mapping[str, Mapping[str, float]]", summary.get("metrics") or {}),
        "spent": cast("Mapping[str, float]", summary.get("spent") or {}),
        "series": series_of(read_lines(folder.metrics)),
        "entries": lives(by_update, playbooks),
        "prompts": list(prompts.values()),
    }
    return run, dict(by_update)


def slim_rollout(line: Line, token_losses: Line | None, max_chars: int) -> dict[str, object]:
    """Return what the page shows of a transcript's line.

    Prompts are left out: a large playbook stands in each of them. The teacher's comes as `prompt_parts`, those of
    reflectors and curators are in transcripts.jsonl.
    """
    answers = cast("list[dict[str, object]]", line["answers"])
    return {
        **{key: line[key] for key in ("update", "example", "sample", "reward", "tests_passed", "response_tokens")},
        **{key: line[key] for key in ("is_truncated", "verify_error", "operations", "teacher_sections")},
        "teacher_skipped": line["teacher_skipped"],
        "response": shorten(cast("str", line["response"]), max_chars),
        "feedback": shorten(cast("str", line["feedback"]), max_chars),
        "answers": [
            {
                "purpose": answer["purpose"],
                "text": shorten(cast("str", answer["text"]), max_chars),
                "problems": answer["problems"],
            }
            for answer in answers
        ],
        "tokens": None if token_losses is None else cast("list[str]", token_losses["tokens"])[:MAX_TOKENS],
        "losses": None if token_losses is None else cast("list[float]", token_losses["losses"])[:MAX_TOKENS],
    }


Part = tuple[str, int | str]
"""A part of a prompt: its section, empty for what the template says; and its text, by its number among `Texts`, or by
the name of a text that the page has with the rollout anyway."""


def prompt_parts(line: Line, texts: Texts) -> list[Part]:
    """Return the last message of a rollout's teacher prompt, part by part; nothing where no spans are told."""
    messages = cast("list[dict[str, str]] | None", line["teacher_prompt"])
    spans = cast("list[tuple[str, int, int]]", line.get("teacher_spans") or [])
    if messages is None or not spans:
        return []
    prompt, question = messages[-1]["content"], cast("list[dict[str, str]]", line["prompt"])[-1]["content"]
    pieces: list[tuple[str, str]] = []
    end = 0
    for name, start, stop in [*spans, ("", len(prompt), len(prompt))]:
        before, found, after = prompt[end:start].partition(question or prompt)
        pieces += [("", before), ("question", found), ("", after), (name, prompt[start:stop])]
        end = stop
    known = {str(line["response"]): "response", str(line["feedback"]): "feedback", question: "question"}
    return [(name, known[text] if text in known else texts.number(text)) for name, text in pieces if text.strip()]


def shorten(text: str, max_chars: int) -> str:
    """Return the text, or its beginning and end and how much is left out between them."""
    if len(text) <= max_chars:
        return text
    head, tail = max_chars - max_chars // 3, max_chars // 3
    return f"{text[:head]}\n[... {len(text) - head - tail} characters left out ...]\n{text[len(text) - tail :]}"


def series_of(lines: Iterable[Line]) -> dict[str, Series]:
    """Return every scalar's updates and values by name; a value that is no number is None."""
    series: dict[str, Series] = {}
    for line in lines:
        for name, value in line.items():
            if "/" in name and isinstance(value, int | float):
                updates, values = series.setdefault(name, ([], []))
                updates.append(cast("int", line["updates_done"]))
                values.append(float(value) if math.isfinite(value) else None)
    return series


def differing_keys(configs: Sequence[Mapping[str, object]]) -> list[tuple[str, list[str | None]]]:
    """Return the keys whose values aren't the same in all configurations, with each one's value as JSON."""
    texts = [
        {key: json.dumps(value, ensure_ascii=False, default=str) for key, value in config.items()} for config in configs
    ]
    return sorted((key, values) for key, values in differing(texts).items() if key not in CALL_KEYS)


def _token_losses(lines: Iterable[Line]) -> dict[tuple[int, str, int], Line]:
    return {
        (cast("int", line["updates_done"]) - 1, cast("str", line["example"]), cast("int", line["sample"])): line
        for line in lines
        if line["kind"] == "token_losses"
    }


def _config(folder: RunFolder) -> dict[str, object]:
    if not folder.config.is_file():
        return {}
    return flat(yaml.safe_load(folder.config.read_text("utf-8")))
