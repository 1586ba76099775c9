"""`resd forgetting`: what training has cost elsewhere, on benchmarks of lm-evaluation-harness."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch
import yaml
from peft import PeftModel
from rich.console import Console
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter
from transformers import PreTrainedModel

from resd_lightning.config import ConfigError, LoraSettings, PolicyConfig
from resd_lightning.export import find_student
from resd_lightning.harness import HarnessSettings, Scores, load_benchmarks, require_harness, run_benchmarks
from resd_lightning.policy.load import load_base, load_tokenizer, read_base_facts
from resd_lightning.run_folder import RunFolder, append_lines

logger = logging.getLogger(__name__)


def forgetting(
    run_dir: str,
    tasks: str = "ifeval",
    data: str | None = None,
    update: str = "last",
    limit: int | None = None,
    num_fewshot: int | None = None,
    max_gen_toks: int | None = None,
    batch_size: int = 8,
    chat: bool = True,
    device: str | None = None,
) -> None:
    """Compare base and student on benchmarks of lm-evaluation-harness, which training hasn't seen.

    The base is loaded once, as the run held it, and asked with and without the adapter.

    Args:
        run_dir: Folder of a run, or one that `resd export` wrote.
        tasks: Names of lm-eval's tasks, separated by commas.
        data: A local copy of the rows: a file for the only task, or a folder with TASK.parquet or TASK/SPLIT.parquet
            for each (.jsonl and .json do as well); null asks the hub.
        update: Which validated student of a run: best, last, or a number of updates.
        limit: Most documents of each task; null takes all.
        num_fewshot: Solved examples in each prompt; null leaves it to the task.
        max_gen_toks: Longest response in tokens; null leaves it to the task.
        batch_size: Documents asked at a time.
        chat: Put prompts into the model's chat template.
        device: Where the model runs, for example cuda; null takes a GPU where there is one.

    Raises:
        ConfigError: Names the option at fault, before any weight is read.
    """
    require_harness()
    settings = HarnessSettings(limit, num_fewshot, max_gen_toks, batch_size, chat)
    place = _device(device)
    subject = find_subject(RunFolder(Path(run_dir)), update)
    tokenizer, facts = load_tokenizer(subject.policy), read_base_facts(subject.policy)
    names = list(dict.fromkeys(name.strip() for name in tasks.split(",")))
    logger.info("looking for %s", ", ".join(names))
    benchmarks = load_benchmarks(names, None if data is None else Path(data), settings, facts.max_positions)
    started = time.perf_counter()

    def measure(model: PreTrainedModel | PeftModel) -> Scores:
        return run_benchmarks(benchmarks, model, tokenizer, settings)

    if subject.policy.lora is not None:
        model = PeftModel.from_pretrained(_load(subject.policy, place), subject.student)
        with model.disable_adapter():
            before = measure(model)
        after = measure(model)
    else:  # one after the other: two whole models need not fit
        before = measure(_load(subject.policy, place))
        after = measure(_load(replace(subject.policy, base=str(subject.student)), place))
    comparisons = compare(before, after)
    about = {
        "updates_done": subject.updates_done,
        "student": str(subject.student),
        "data": data,
        **asdict(settings),
        "lm_eval": version("lm_eval"),
        "seconds": round(time.perf_counter() - started, 1),
    }
    append_lines(subject.folder.benchmarks, [{**about, "scores": [asdict(one) for one in comparisons]}])
    if subject.updates_done is not None:
        _write_scalars(subject.folder, subject.updates_done, comparisons)
    Console().print(table(comparisons, "" if subject.updates_done is None else f" after update {subject.updates_done}"))
    logger.info("kept in %s", subject.folder.benchmarks)


@dataclass(frozen=True)
class Subject:
    """Whose forgetting is measured.

    Attributes:
        folder: Where results go.
        updates_done: Updates behind the student; None for an exported one.
        student: Folder of its adapter, or of the whole model after full fine-tuning.
        policy: The base, and how it is held in memory.
    """

    folder: RunFolder
    updates_done: int | None
    student: Path
    policy: PolicyConfig


def find_subject(folder: RunFolder, update: str) -> Subject:
    """Return the student of a run, or of a folder that `resd export` wrote.

    Raises:
        ConfigError: There is none, or its configuration can't be read.
    """
    is_exported = any((folder.path / name).is_file() for name in ("adapter_config.json", "config.json"))
    updates_done, student = (None, folder.path) if is_exported else find_student(folder, update)
    try:
        options = yaml.safe_load(folder.config.read_text(encoding="utf-8"))["model"]["policy"]
        lora = options["lora"]
        policy = PolicyConfig(**{**options, "lora": None if lora is None else LoraSettings(**lora)})
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigError(
            f"run_dir {folder.path}: config.yaml must say how the base is held in memory, as `resd fit` and "
            f"`resd export` leave it ({type(error).__name__}: {error})"
        ) from error
    return Subject(folder, updates_done, student, replace(policy, gradient_checkpointing=False))


@dataclass(frozen=True)
class Comparison:
    """One metric of one task, on base and student.

    Attributes:
        task: The harness's name.
        metric: The harness's name; with the filter of responses where the task has several.
        is_better_high: Whether more of it is better.
        base: The base's score.
        base_stderr: Its standard error; None where the harness gives none.
        student: The student's score.
        student_stderr: Its standard error.
        lost: Documents that the base gets right and the student doesn't; None where the metric isn't yes or no.
        gained: Documents that the student gets right and the base doesn't.
    """

    task: str
    metric: str
    is_better_high: bool
    base: float
    base_stderr: float | None
    student: float
    student_stderr: float | None
    lost: list[int] | None
    gained: list[int] | None


def compare(before: Scores, after: Scores) -> list[Comparison]:
    """Return base and student side by side, in the harness's order."""
    comparisons = []
    for (task, metric), base in before.items():
        student, lost, gained = after[task, metric], None, None
        if base.right is not None and student.right is not None and base.is_better_high:
            lost = [id_ for id_, is_right in base.right.items() if is_right and not student.right[id_]]
            gained = [id_ for id_, is_right in base.right.items() if not is_right and student.right[id_]]
        comparisons.append(
            Comparison(
                task,
                metric,
                base.is_better_high,
                base.value,
                base.stderr,
                student.value,
                student.stderr,
                lost,
                gained,
            )
        )
    return comparisons


def table(comparisons: Sequence[Comparison], when: str) -> Table:
    """Return the comparisons for a terminal.

    Args:
        comparisons: Rows, in order.
        when: What the title says of the student's age.
    """
    shown = Table(title=f"Base and student{when}", title_justify="left", title_style="bold")
    shown.add_column("task", overflow="fold")
    shown.add_column("metric", overflow="fold")
    for column in ("base", "student", "change", "lost", "gained"):
        shown.add_column(column, justify="right")
    for one in comparisons:
        documents = ["" if ids is None else str(len(ids)) for ids in (one.lost, one.gained)]
        values = [f"{one.base:.3f}", f"{one.student:.3f}", f"{one.student - one.base:+.3f}"]
        shown.add_row(one.task, f"{one.metric}{'' if one.is_better_high else ' (less is better)'}", *values, *documents)
    return shown


def _write_scalars(folder: RunFolder, updates_done: int, comparisons: Sequence[Comparison]) -> None:
    """Write the scores to the run's TensorBoard: the base's at no update, so that each metric is a curve.

    They stand in a folder of their own, because TensorBoard reads only the newest file of a folder that training may
    still be writing to. It is written anew at each call, from the scores there already and these: where steps go back,
    TensorBoard drops what came before.
    """
    target = folder.path / "tensorboard" / "benchmarks"
    points = _read_scalars(target)
    for one in comparisons:
        name = f"benchmarks/{one.task}/{one.metric.replace(',', '_')}"
        points |= {(name, 0): one.base, (name, updates_done): one.student}
    shutil.rmtree(target, ignore_errors=True)
    with SummaryWriter(target) as writer:
        for (name, step), value in sorted(points.items()):
            writer.add_scalar(name, value, step)


def _read_scalars(target: Path) -> dict[tuple[str, int], float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # a third of a second

    if not target.exists():
        return {}
    events = EventAccumulator(str(target))
    events.Reload()
    return {(name, e.step): e.value for name in events.Tags()["scalars"] for e in events.Scalars(name)}


def _load(policy: PolicyConfig, device: torch.device) -> PreTrainedModel:
    model = load_base(policy, device)
    return model if policy.quantization != "none" else model.to(device)  # quantized weights are there already


def _device(name: str | None) -> torch.device:
    try:
        return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ConfigError(f"--device {name}: {str(error).partition('.')[0]}") from error
