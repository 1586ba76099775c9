"""Benchmarks of lm-evaluation-harness on a model that is loaded already, their rows from the hub or from local files.

What can fail fails before a model is asked for: tasks are found, rows are read, and the whole evaluation is gone
through once with the harness's stand-in for a model, which shows rows that a task can't use and files that it lacks.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import TemplateError
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from resd_lightning.config import ConfigError, require
from resd_lightning.records import Message
from resd_lightning.rollout.chat import encode_prompt, opens_thinking
from resd_lightning.tasks.rows import Fields, read_rows
from resd_lightning.thinking import THINK_CLOSE, THINK_OPEN, strip_thinking

if TYPE_CHECKING:
    from datasets import Dataset
    from lm_eval.api.group import Group
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.task import Task
    from lm_eval.result_schema import EvalResults
    from lm_eval.tasks import TaskManager

logger = logging.getLogger(__name__)

ENDINGS = (".parquet", ".jsonl", ".json")

REFUSALS = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError, TypeError, ValueError)
"""What tasks, which are code and templates of many authors, raise on rows that they weren't written for."""

NLTK_HINT = (
    "python -m nltk.downloader {0} downloads it; without a network unpack {0}.zip of github.com/nltk/nltk_data into "
    "nltk_data/{1}, in the home folder or in one that the variable NLTK_DATA names"
)


@dataclass(frozen=True)
class HarnessSettings:
    """How benchmarks are run.

    Attributes:
        limit: Most documents of each task, from its start; None for all.
        num_fewshot: Solved examples in each prompt; None leaves it to the task.
        max_gen_toks: Longest response in tokens; None leaves it to the task.
        batch_size: Documents asked at a time.
        chat: Whether prompts go through the model's chat template.
    """

    limit: int | None
    num_fewshot: int | None
    max_gen_toks: int | None
    batch_size: int
    chat: bool

    def __post_init__(self) -> None:
        for key, value, least in (
            ("limit", self.limit, 1),
            ("num_fewshot", self.num_fewshot, 0),
            ("max_gen_toks", self.max_gen_toks, 1),
            ("batch_size", self.batch_size, 1),
        ):
            require(value is None or value >= least, f"--{key}", f"at least {least}", value)


@dataclass(frozen=True)
class Score:
    """One metric of one task, measured on one model.

    Attributes:
        value: Over all documents.
        stderr: Its standard error; None where the harness gives none.
        is_better_high: Whether more of it is better.
        right: Of a metric that says yes or no, whether each document is right, by its number; None for others.
    """

    value: float
    stderr: float | None
    is_better_high: bool
    right: Mapping[int, bool] | None


Scores = Mapping[tuple[str, str], Score]
"""Scores by task and metric."""


def require_harness() -> None:
    """Raise `ConfigError` where lm-evaluation-harness isn't installed."""
    if find_spec("lm_eval") is None:
        raise ConfigError("resd forgetting needs the extra `forgetting`: pip install 'resd-lightning[forgetting]'")
    logging.getLogger("lm_eval").setLevel(logging.WARNING)  # it tells each step


def load_benchmarks(
    names: Sequence[str], data: Path | None, settings: HarnessSettings, max_positions: int
) -> list[Task | Group]:
    """Return the tasks, with their rows, each gone through once without a model.

    Args:
        names: Tasks, or groups of them, by the harness's names.
        data: A file with the rows of the only task, or a folder with `TASK.parquet`, or `TASK/SPLIT.parquet`, for each;
            None leaves it to the harness, which asks the hub and its cache.
        settings: How they will be run.
        max_positions: Longest sequence of the model, in tokens.

    Raises:
        ConfigError: Names the task, the file or the option at fault.
    """
    if data is not None:
        require(data.exists(), "--data", "a file or a folder", str(data))
        if data.is_file() and len(names) > 1:
            raise ConfigError(f"--data {data} is one file, but --tasks has {len(names)}: give a folder")
    manager = _task_manager()
    benchmarks: list[Task | Group] = []
    for name in names:
        if name not in manager.all_tasks:
            near = " or ".join(get_close_matches(name, manager.all_tasks))
            raise ConfigError(f"--tasks {name}: lm-eval knows no such task{near and f'; do you mean {near}?'}")
        overrides = None if data is None else _local(name, manager, data, settings)
        try:
            benchmarks += _rehearsed(name, manager, overrides, settings, max_positions)
        except ConfigError:
            raise
        except (*REFUSALS, TemplateError) as error:
            source = "the hub (--data gives a local copy)" if data is None else str(data)
            raise ConfigError(f"--tasks {name} can't be run on its rows from {source}: {_reason(error)}") from error
    return benchmarks


def run_benchmarks(
    benchmarks: Sequence[Task | Group],
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: HarnessSettings,
) -> Scores:
    """Return a loaded model's scores on what `load_benchmarks` returned; thinking is taken off its responses."""
    from lm_eval.models.huggingface import HFLM

    asked = encode_prompt(tokenizer, (Message(role="user", content="?"),)) if settings.chat else ()
    opened = THINK_OPEN if opens_thinking(tokenizer, asked) else ""

    class Speaker(HFLM):  # type: ignore[misc]  # lm-eval is untyped here
        """The harness takes off what stands before `</think>`; left is the response that was cut in mid-thought."""

        def tok_decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
            text: str = super().tok_decode(tokens, skip_special_tokens)
            return opened + text if skip_special_tokens else text  # so it decodes responses, and they alone

        def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
            answers = [strip_thinking(response) for response in super().generate_until(requests, disable_tqdm)]
            if empty := sum(not answer for answer in answers):
                logger.warning("%d of %d responses hold no answer: see --max_gen_toks", empty, len(answers))
            return answers

    lm = Speaker(pretrained=model, tokenizer=tokenizer, batch_size=settings.batch_size, think_end_token=THINK_CLOSE)
    return _scores(_evaluate(lm, benchmarks, settings, is_chat=settings.chat))


@cache
def _task_manager() -> TaskManager:
    from lm_eval.tasks import TaskManager

    return TaskManager()  # reads thousands of files: some ten seconds


def _rehearsed(
    name: str,
    manager: TaskManager,
    overrides: Mapping[str, object] | None,
    settings: HarnessSettings,
    max_positions: int,
) -> list[Task | Group]:
    from lm_eval.models.dummy import DummyLM

    # As the member of a group a task takes overrides of what its own file says; given alone they would replace it.
    loaded = manager.load([name if overrides is None else {"group": "local", "task": [dict(overrides)]}])
    whole = [loaded["groups"][name]] if name in loaded["groups"] else list(loaded["tasks"].values())
    for task in loaded["tasks"].values():
        longest = settings.max_gen_toks or (task.config.generation_kwargs or {}).get("max_gen_toks", 0)
        if task.config.output_type == "generate_until" and longest >= max_positions:
            raise ConfigError(
                f"--tasks {name}: responses of {longest} tokens leave no room for a prompt in the model's "
                f"{max_positions}: give --max_gen_toks"
            )
    stand_in = DummyLM()
    stand_in.tokenizer = None  # it would fetch one
    _evaluate(stand_in, whole, settings, is_chat=False)
    return whole


def _evaluate(lm: LM, tasks: Sequence[Task | Group], settings: HarnessSettings, *, is_chat: bool) -> EvalResults:
    from lm_eval import simple_evaluate

    return simple_evaluate(
        model=lm,
        tasks=list(tasks),
        task_manager=_task_manager(),  # it would read all tasks again
        num_fewshot=settings.num_fewshot,
        limit=settings.limit,
        apply_chat_template=is_chat,
        gen_kwargs=None if settings.max_gen_toks is None else {"max_gen_toks": settings.max_gen_toks},
    )


def _scores(results: EvalResults) -> Scores:
    scores: dict[tuple[str, str], Score] = {}
    for task, values in results["results"].items():
        for key, value in values.items():
            metric, _, filter_ = key.partition(",")
            if not filter_ or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = values.get(f"{metric}_stderr,{filter_}")
            by_document = {
                sample["doc_id"]: sample[metric]
                for sample in results["samples"].get(task, ())
                if sample["filter"] == filter_ and metric in sample
            }
            is_yes_or_no = by_document and all(x in (0, 1) for x in by_document.values())  # others are lists or shares
            scores[task, metric if filter_ == "none" else f"{metric},{filter_}"] = Score(
                float(value),
                stderr if isinstance(stderr, float) else None,
                results["higher_is_better"].get(task, {}).get(metric) is not False,
                {id_: bool(x) for id_, x in by_document.items()} if is_yes_or_no else None,
            )
    return scores


# Local files


def _local(name: str, manager: TaskManager, data: Path, settings: HarnessSettings) -> dict[str, object]:
    """Return what makes a task take its rows from files: the splits that no file serves are taken from it."""
    config = manager.task_index[name].cfg or {}
    if name not in manager.all_subtasks:
        raise ConfigError(f"--tasks {name} is a group: with --data name its tasks one by one")
    if "class" in config:
        raise ConfigError(f"--tasks {name} reads its rows by code of its own: leave --data out for it")
    kinds = ("test_split", "validation_split", "training_split", "fewshot_split")
    splits = {kind: str(config[kind]) for kind in kinds if config.get(kind)}
    scored = splits.get("test_split") or splits.get("validation_split", "")
    files = _files(name, data, scored, set(splits.values()))
    rows = {split: _read_dataset(file) for split, file in files.items()}
    shots = config.get("num_fewshot")
    if shots != 0 and settings.num_fewshot is not None:  # the harness lets no option undo a task's 0
        shots = settings.num_fewshot
    sources = [splits[kind] for kind in ("fewshot_split", "training_split", "validation_split") if kind in splits]
    if shots and sources and not (config.get("fewshot_config") or {}).get("samples") and sources[0] not in rows:
        raise ConfigError(
            f"--data {data}: {name} takes {shots} solved examples from its split {sources[0]}: give "
            f"{name}/{sources[0]}.parquet too, or --num_fewshot 0"
        )
    for field in ("doc_to_text", "doc_to_target"):
        column = config.get(field)
        # A name of a column that isn't there would be taken for the text itself.
        if isinstance(column, str) and column.isidentifier() and column not in rows[scored].column_names:
            raise ConfigError(f"--data {files[scored]}: {name} needs a column {column}")
    absent = {kind: None for kind, split in splits.items() if split not in rows}
    return {"task": name, "custom_dataset": lambda **_: rows, "dataset_kwargs": None, **absent}


def _files(name: str, data: Path, scored: str, splits: set[str]) -> dict[str, Path]:
    if data.is_file():
        return {scored: data}
    if alone := _file(data / name):
        return {scored: alone}
    files = {split: file for split in splits if (file := _file(data / name / split))}
    if scored not in files:
        raise ConfigError(
            f"--data {data} has no rows of {name}: it needs {name}.parquet, or {name}/{scored}.parquet with other "
            f"splits beside it; {', '.join(ENDINGS[1:])} do as well"
        )
    return files


def _file(stem: Path) -> Path | None:
    found = [path for ending in ENDINGS if (path := stem.with_name(stem.name + ending)).is_file()]
    if len(found) > 1:
        raise ConfigError(f"--data: which of {' and '.join(map(str, found))} is meant?")
    return found[0] if found else None


@dataclass(frozen=True)
class _Row:
    id: str
    fields: Fields


def _read_dataset(file: Path) -> Dataset:
    import pyarrow
    import pyarrow.parquet
    from datasets import Dataset

    require(file.suffix in ENDINGS, f"--data {file}", f"a file ending in one of {ENDINGS}", file.suffix)
    try:
        if file.suffix == ".parquet":
            rows: list[Fields] = pyarrow.parquet.read_table(file).to_pylist()
        else:
            read = read_rows(file, lambda fields, number: _Row(str(number), fields), key="--data", absent="")
            rows = [row.fields for row in read]
        require(bool(rows), f"--data {file}", "a file with rows", "none")
        return Dataset.from_list([_unwrapped(row) for row in rows])
    except pyarrow.ArrowException as error:
        raise ConfigError(f"--data {file} can't be read: {error}") from error


def _unwrapped(row: Fields) -> Fields:
    """Return the fields of a benchmark's own row from one in verl's layout, which keeps them as the ground truth."""
    match row:
        case {"reward_model": {"ground_truth": dict(fields)}, "extra_info": {"index": key}}:
            return {"key": key, **fields}
    return row


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, ModuleNotFoundError):
        return f"{text}: install it, or lm-eval's extra for the task"
    if resource := re.search(r"nltk\.download\('(\w+)'\).*Attempted to load '?(\w+)/", text):
        return f"NLTK's data {resource[1]} is missing: {NLTK_HINT.format(*resource.groups())}"
    return f"{type(error).__name__}: {text}"
