"""The folder of one run: what lies where, and how its files survive being cut off."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

Line = Mapping[str, object]

LONE_SURROGATES = "backslashreplace"
"""How halves of surrogate pairs are written, which UTF-8 can't hold: as JSON's own escape, so they read back."""


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run's folder.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The run's whole configuration, as the command line composed it."""
        return self.path / "config.yaml"

    @property
    def last_checkpoint(self) -> Path:
        """The state after the latest update, which `--ckpt_path last` resumes from."""
        return self.path / "checkpoints" / "last.ckpt"

    def edited_checkpoint(self, updates_done: int) -> Path:
        """A free name for the state of an update with an edited playbook."""
        return _first_free(self.last_checkpoint.with_name(f"edited-{updates_done:05d}-{i}.ckpt") for i in count(1))

    def edited_playbook(self) -> Path:
        """A free name for a playbook's text while it is being edited."""
        return _first_free(self.path / f"playbook-edited-{i}.json" for i in count(1))

    @property
    def metrics(self) -> Path:
        """Every scalar, one JSON object per update or validation."""
        return self.path / "metrics.jsonl"

    @property
    def transcripts(self) -> Path:
        """Every training rollout with what was made of it, one JSON object each."""
        return self.path / "transcripts.jsonl"

    @property
    def diagnostics(self) -> Path:
        """What observers saw beyond scalars, one JSON object each; see docs/diagnostics.md."""
        return self.path / "diagnostics.jsonl"

    @property
    def predictions(self) -> Path:
        """What `resd predict` wrote, one JSON object per response."""
        return self.path / "predictions.jsonl"

    @property
    def evaluations(self) -> Path:
        """What `resd validate`, `resd test` and `resd playbook try` measured, one JSON object per call."""
        return self.path / "evaluations.jsonl"

    @property
    def benchmarks(self) -> Path:
        """What `resd forgetting` measured, one JSON object per call."""
        return self.path / "benchmarks.jsonl"

    @property
    def forgetting(self) -> Path:
        """What `MeasureForgetting` found, one JSON object per scoring."""
        return self.path / "forgetting.jsonl"

    @property
    def summary(self) -> Path:
        """The run in numbers."""
        return self.path / "summary.json"

    @property
    def playbook(self) -> Path:
        """The latest playbook, for people; the checkpoint's is the one that counts."""
        return self.path / "playbook.json"

    def student(self, updates_done: int) -> Path:
        """Folder of the student's weights as of one validation."""
        return self.path / "checkpoints" / f"update-{updates_done:05d}"

    def students(self) -> list[Path]:
        """Return the folders of all validated students, oldest first."""
        return sorted((self.path / "checkpoints").glob("update-*"))

    @property
    def has_run(self) -> bool:
        """Whether a run has left anything to lose here."""
        return self.last_checkpoint.exists() or self.metrics.exists()

    def delete_run(self) -> None:
        """Delete everything a run has written here, and nothing else."""
        for path in (self.path / "checkpoints", self.path / "tensorboard"):
            shutil.rmtree(path, ignore_errors=True)
        own = (
            self.config,
            self.metrics,
            self.transcripts,
            self.diagnostics,
            self.predictions,
            self.evaluations,
            self.benchmarks,
            self.forgetting,
            self.summary,
            self.playbook,
        )
        for path in own:
            path.unlink(missing_ok=True)


def append_lines(path: Path, lines: Iterable[Line]) -> None:
    """Append JSON objects to a file, one per line, in one write."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    with path.open("a", encoding="utf-8", errors=LONE_SURROGATES) as file:
        file.write(text)


def read_lines(path: Path) -> Iterator[dict[str, object]]:
    """Yield a file's JSON objects; none if it doesn't exist. A last line that was cut off in writing is left out."""
    if not path.exists():
        return
    with path.open("rb") as file:  # not as text: the cut may go through a character
        for line in file:
            if line.endswith(b"\n"):
                yield json.loads(line)


def keep_lines(path: Path, is_kept: Callable[[Line], bool]) -> None:
    """Rewrite a file of JSON objects without those that `is_kept` refuses."""
    if path.exists():
        replace_text(path, "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in read_lines(path) if is_kept(x)))


def drop_lines_after(path: Path, updates_done: int) -> None:
    """Rewrite a file whose lines say `updates_done` without those past an update, which a resumed run writes again."""
    keep_lines(path, lambda line: int(str(line["updates_done"])) <= updates_done)


def replace_text(path: Path, text: str) -> None:
    """Write a file in one step: readers, and a kill at any moment, see the old text or the new."""
    scratch = path.with_name(f".{path.name}.new")
    scratch.write_text(text, encoding="utf-8", errors=LONE_SURROGATES)
    os.replace(scratch, path)


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """Yield a folder to write, which takes the place of `path` when all is written: until then what was there stays."""
    scratch = path.with_name(f".{path.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    yield scratch
    shutil.rmtree(path, ignore_errors=True)
    os.replace(scratch, path)


def _first_free(paths: Iterable[Path]) -> Path:
    return next(path for path in paths if not path.exists())
