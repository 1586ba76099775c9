"""`resd forgetting` on a tiny model and rows made here, and what it refuses before any weight is read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest
import yaml
from peft import PeftModel
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_kill_and_resume import jsonl

from conftest import SMALL_LORA, make_policy, make_tiny_base, move
from resd_lightning import forgetting as tool
from resd_lightning import harness
from resd_lightning.cli import main
from resd_lightning.config import LoraSettings, PolicyConfig
from resd_lightning.export import export
from resd_lightning.harness import HarnessSettings, load_benchmarks, run_benchmarks
from resd_lightning.policy.load import load_base, load_tokenizer

lm_eval = pytest.importorskip("lm_eval")

# The harness and what it stands on, in the versions it asks for.
pytestmark = pytest.mark.filterwarnings("default")

QUIZ = """
task: quiz
dataset_path: nowhere/quiz
training_split: train
validation_split: validation
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""


@pytest.fixture(autouse=True, scope="module")
def few_tasks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The harness with two tasks, a group and no download: reading thousands of tasks takes longer than all tests."""
    import nltk
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    own = tmp_path_factory.mktemp("tasks")
    (own / "quiz.yaml").write_text(QUIZ)
    (own / "group.yaml").write_text("group: quizzes\ntask: [quiz]\n")
    ifeval = Path(lm_eval.__file__).parent / "tasks" / "ifeval"
    manager = TaskManager(include_defaults=False, include_path=[ifeval, own])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nltk, "download", lambda name: False)
        patch.setattr(evaluator, "add_env_info", lambda results: None)  # it lists all packages, by a program
        patch.setattr(harness, "_task_manager", lambda: manager)
        yield


def ifeval_row(key: int, prompt: str, instruction: str, **arguments: object) -> dict[str, object]:
    return {"key": key, "prompt": prompt, "instruction_id_list": [instruction], "kwargs": [arguments]}


IFEVAL = [
    ifeval_row(7, "Say something in lower case.", "change_case:english_lowercase"),
    ifeval_row(8, "No commas, please.", "punctuation:no_comma"),
    ifeval_row(9, "Write an a.", "keywords:letter_frequency", letter="a", let_frequency=1, let_relation="at least"),
    ifeval_row(10, "At least five words.", "length_constraints:number_words", num_words=5, relation="at least"),
    ifeval_row(11, "Write a q.", "keywords:letter_frequency", letter="q", let_frequency=1, let_relation="at least"),
]
QUESTIONS = [
    {"question": f"What comes after {i}?", "choices": [str(i + 1), "red", "no", "x y"], "answer": i % 4}
    for i in range(16)
]


def write_rows(path: Path, rows: Iterable[Mapping[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_run(folder: Path, base: Path, lora: LoraSettings | None = SMALL_LORA, quantization: str = "none") -> Path:
    """Write what a run leaves that moved far enough from its base to answer otherwise."""
    policy = make_policy(base, lora=lora, quantization=quantization)
    move(policy.student_weights().values(), by=0.5 if lora else 0.05)
    policy.save_pretrained(folder / "checkpoints" / "update-00006")
    options = {"base": str(base), "dtype": "float32", "quantization": quantization}
    options["lora"] = None if lora is None else {"rank": lora.rank, "alpha": lora.alpha}
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": {"policy": options}}))
    return folder


@pytest.mark.parametrize(
    ("lora", "quantization"), [(SMALL_LORA, "none"), (SMALL_LORA, "nf4"), (None, "none")], ids=["lora", "nf4", "full"]
)
def test_scores_are_those_of_base_and_student_each_on_its_own(
    lora: LoraSettings | None, quantization: str, tmp_path: Path
) -> None:
    base = make_tiny_base(tmp_path / "base", hidden=64)
    folder = make_run(tmp_path / "run", base, lora, quantization)
    data = write_rows(tmp_path / "data" / "quiz.jsonl", QUESTIONS).parent
    write_rows(data / "ifeval.jsonl", IFEVAL)
    command = ["forgetting", str(folder), "--tasks=quiz,ifeval", f"--data={data}", "--max_gen_toks=24"]
    assert main([*command, "--device=cpu"]) == 0

    (line,) = jsonl(folder / "benchmarks.jsonl")
    assert (line["updates_done"], line["max_gen_toks"]) == (6, 24)
    scores = {(one["task"], one["metric"]): one for one in line["scores"]}
    assert list(scores) == [
        ("quiz", "acc"),
        ("ifeval", "prompt_level_strict_acc"),
        ("ifeval", "inst_level_strict_acc"),
        ("ifeval", "prompt_level_loose_acc"),
        ("ifeval", "inst_level_loose_acc"),
    ]

    config = PolicyConfig(str(base), dtype="float32", quantization=quantization, lora=lora)
    settings = HarnessSettings(None, None, 24, 8, chat=True)
    student = folder / "checkpoints" / "update-00006"
    whole = PolicyConfig(str(student), dtype="float32", lora=None)
    models = {
        "base": load_base(config),
        "student": load_base(whole) if lora is None else PeftModel.from_pretrained(load_base(config), student),
    }
    for who, model in models.items():
        tasks = load_benchmarks(["quiz", "ifeval"], data, settings, 16384)
        alone = run_benchmarks(tasks, model, load_tokenizer(config), settings)
        assert {key: one[who] for key, one in scores.items()} == {key: score.value for key, score in alone.items()}
    assert any(one["lost"] or one["gained"] for one in scores.values())
    for one in scores.values():
        if one["lost"] is not None:
            documents = 16 if one["task"] == "quiz" else 5
            change = (len(one["gained"]) - len(one["lost"])) / documents
            assert one["student"] - one["base"] == pytest.approx(change)
    assert scores["quiz", "acc"]["lost"] is not None
    assert scores["ifeval", "inst_level_strict_acc"]["lost"] is None  # several instructions a document

    events = EventAccumulator(str(folder / "tensorboard" / "benchmarks"))
    events.Reload()
    curve = [(event.step, event.value) for event in events.Scalars("benchmarks/quiz/acc")]
    assert curve == [
        (0, pytest.approx(scores["quiz", "acc"]["base"])),
        (6, pytest.approx(scores["quiz", "acc"]["student"])),
    ]


@pytest.mark.parametrize("opens", [False, True])
def test_a_response_cut_off_in_mid_thought_is_no_answer(
    opens: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = make_tiny_base(tmp_path / "base")
    config = PolicyConfig(str(base), dtype="float32", lora=None)
    tokenizer, settings = load_tokenizer(config), HarnessSettings(None, None, 8, 8, chat=True)
    if opens:
        tokenizer.chat_template += "{% if add_generation_prompt %}<think>{% endif %}"
    data = write_rows(tmp_path / "ifeval.jsonl", [ifeval_row(8, "No commas, please.", "punctuation:no_comma")])
    tasks = load_benchmarks(["ifeval"], data, settings, 16384)
    (score, *_) = run_benchmarks(tasks, load_base(config), tokenizer, settings).values()
    assert ("1 of 1 responses hold no answer" in caplog.text) == opens
    if opens:
        assert score.value == 0.0


def test_an_exported_student_is_measured_where_it_lies(tiny_base: Path, tmp_path: Path) -> None:
    run, out = make_run(tmp_path / "run", tiny_base), tmp_path / "out"
    export(str(run), str(out), update="last")
    data = write_rows(tmp_path / "any name.jsonl", QUESTIONS)
    for folder in (run, out):
        assert main(["forgetting", str(folder), "--tasks=quiz", f"--data={data}", "--limit=7"]) == 0
    (from_run,), (from_export,) = jsonl(run / "benchmarks.jsonl"), jsonl(out / "benchmarks.jsonl")
    assert from_run["scores"] == from_export["scores"]
    assert from_export["updates_done"] is None
    assert not (out / "tensorboard").exists()


def test_rows_in_verls_layout_are_the_rows_they_hold(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    wrapped = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "reward_model": {"style": "IF", "ground_truth": {name: row[name] for name in row if name != "key"}},
            "extra_info": {"index": str(row["key"])},
        }
        for row in IFEVAL
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(wrapped), tmp_path / "ifeval.parquet")
    settings = HarnessSettings(None, None, 8, 8, chat=False)
    (one,) = load_benchmarks(["ifeval"], tmp_path, settings, 16384)
    (other,) = load_benchmarks(["ifeval"], write_rows(tmp_path / "rows.jsonl", IFEVAL), settings, 16384)
    for doc, plain, row in zip(one.eval_docs, other.eval_docs, IFEVAL, strict=True):
        assert one.doc_to_text(doc) == other.doc_to_text(plain) == row["prompt"]
        for response in ("lower case words, many of them a", "A q"):
            assert one.process_results(doc, [response]) == other.process_results(plain, [response])


def test_solved_examples_come_from_their_own_split(tmp_path: Path) -> None:
    write_rows(tmp_path / "quiz" / "validation.jsonl", QUESTIONS)
    write_rows(tmp_path / "quiz" / "train.jsonl", [{"question": "Q", "choices": ["A", "B"], "answer": 1}] * 2)
    (task,) = load_benchmarks(["quiz"], tmp_path, HarnessSettings(2, 1, None, 8, chat=False), 16384)
    prompts = [instance.args[0] for instance in task.instances]
    assert len(prompts) == 8  # two documents of four choices
    assert all(prompt.startswith("Q B\n\nWhat comes after") for prompt in prompts)


class Refusals:
    """Runs `resd forgetting`, which must refuse."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys

    def __call__(self, *options: str) -> str:
        assert main(["forgetting", str(self.folder), *options]) == 2
        return self.capsys.readouterr().err


@pytest.fixture
def refusal(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Refusals:
    """Returns what a refused command says; loading weights fails the test."""
    run = make_run(tmp_path / "run", tiny_base)
    monkeypatch.setattr(tool, "load_base", lambda *_: pytest.fail("weights were loaded before the refusal"))
    return Refusals(run, capsys)


def test_tasks_and_files_that_do_not_fit_are_refused(refusal: Refusals, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data" / "quiz.jsonl", QUESTIONS)
    assert "--tasks ifevil: lm-eval knows no such task; do you mean ifeval" in refusal("--tasks=ifevil")
    assert "--data must be a file or a folder" in refusal(f"--data={tmp_path}/nothing")
    assert "is one file, but --tasks has 2" in refusal("--tasks=quiz,ifeval", f"--data={data}")
    assert "--tasks quizzes is a group" in refusal("--tasks=quizzes", f"--data={data}")
    told = refusal("--tasks=quiz,ifeval", f"--data={data.parent}")
    assert f"--data {data.parent} has no rows of ifeval: it needs ifeval.parquet, or ifeval/train.parquet" in told
    write_rows(data.with_suffix(".json"), QUESTIONS)
    assert "which of" in refusal("--tasks=quiz", f"--data={data.parent}")
    told = refusal("--tasks=quiz", f"--data={data}", "--num_fewshot=2")
    assert "quiz takes 2 solved examples from its split train: give quiz/train.parquet too" in told
    write_rows(data.parent / "ifeval.jsonl", IFEVAL)
    told = refusal(f"--data={data.parent}", "--max_gen_toks=16384")
    assert "--tasks ifeval: responses of 16384 tokens leave no room for a prompt in the model's 16384" in told


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.jsonl", '{"prompt": "p"}\n{', "rows.jsonl, line 2: broken JSON"),
        ("rows.jsonl", "", "rows.jsonl holds no rows"),
        ("rows.parquet", "PAR1", "can't be read"),
        ("rows.txt", "text", "must be a file ending in one of"),
        ("rows.jsonl", '{"question": "q"}\n', "ifeval needs a column prompt"),
        ("rows.jsonl", '{"prompt": "p", "key": 1}\n', "KeyError: 'instruction_id_list'"),
        (
            "rows.jsonl",
            json.dumps(ifeval_row(1, "p", "change_case:whisper")) + "\n",
            "--tasks ifeval can't be run on its rows from {data}: KeyError: 'change_case:whisper'",
        ),
    ],
)
def test_rows_that_the_task_cannot_use_are_refused(
    name: str, content: str, said: str, refusal: Refusals, tmp_path: Path
) -> None:
    data = tmp_path / name
    data.write_text(content)
    assert said.format(data=data) in refusal(f"--data={data}")


def test_a_run_without_a_student_is_refused(refusal: Refusals, tmp_path: Path) -> None:
    refusal.folder = tmp_path / "empty"
    assert f"run_dir {tmp_path}/empty holds no validated student" in refusal()


def test_a_base_that_is_gone_is_refused(refusal: Refusals) -> None:
    config = refusal.folder / "config.yaml"
    config.write_text(config.read_text().replace("tiny-base", "gone"))
    assert "has no readable tokenizer" in refusal()


def test_data_that_nltk_lacks_is_named_with_where_to_put_it(
    refusal: Refusals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    row = ifeval_row(1, "p", "change_case:capital_word_frequency", capital_frequency=1, capital_relation="at least")
    told = refusal(f"--data={write_rows(tmp_path / 'rows.jsonl', [row])}")
    assert "NLTK's data punkt_tab is missing: python -m nltk.downloader punkt_tab downloads it" in told
    assert "into nltk_data/tokenizers" in told


def test_an_unreachable_hub_is_answered_by_naming_the_option(
    refusal: Refusals, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def unreachable(**_: object) -> None:
        raise ConnectionError("Couldn't reach 'nowhere/quiz' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    told = refusal("--tasks=quiz")
    assert "--tasks quiz can't be run on its rows from the hub (--data gives a local copy): ConnectionError" in told
