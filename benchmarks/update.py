"""Measures a whole update: ours against TRL's SDPOTrainer, and RESD against SDPO.

    python benchmarks/update.py --out benchmarks/results/update.json
    python benchmarks/update.py --models smollm2 --response_tokens 128 --out benchmarks/results/update.json

SDPO against TRL: the same model with LoRA, the same prompts, responses of one full length, raw feedback in the
teacher's prompt in the same words, nobody succeeds; generation by transformers, all responses in one batch; the same
micro-batches, top-k and a tail, an EMA teacher, AdamW, fp32, no recomputed activations, one optimizer step. `small` and
`qwen` are random models, `qwen` with Qwen3's vocabulary; `smollm2` is SmolLM2-135M from `make model`, whose turns
end with a token that it never says.

RESD against SDPO: micro-lm on the quickstart, with reflections that can be read; the mean of `--micro_updates` updates,
beside what the numbers of tokens would let expect.

Each case is a process of its own: the first update warms up, of the others the fastest counts. Seconds are the
processor's; peaks are what the process holds above what it held before the update.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from measuring import Stopwatch, rounded, run_apart, surroundings, write
from peft import LoraConfig
from random_model import Shape, make_random_model, words
from transformers import AutoTokenizer

from resd_lightning.algorithm import algorithm_callbacks
from resd_lightning.callbacks import SyncTeacher
from resd_lightning.cli import ResdCLI
from resd_lightning.config import (
    ContextConfig,
    DistillationConfig,
    LoraSettings,
    OptimizerConfig,
    PolicyConfig,
    SamplingConfig,
    TeacherConfig,
    TeacherPromptConfig,
)
from resd_lightning.costs import Costs
from resd_lightning.datamodule import RolloutDataModule
from resd_lightning.module import ResdModule
from resd_lightning.records import Example, Feedback, Message, Split
from resd_lightning.rollout.hf import HFEngine
from resd_lightning.tasks.base import Task
from resd_lightning.training import GRADIENT_CLIP_VAL, derived_arguments

ROOT = Path(__file__).resolve().parents[1]
SHAPES = {
    "small": Shape(hidden=256, layers=4, vocab=32768),
    "qwen": Shape(hidden=256, layers=4, vocab=151936),
    "tiny": Shape(hidden=64, layers=1, vocab=8192),
}
SMOLLM2 = ROOT / "models" / "smollm2-135m-instruct"
PACKAGES = {"ours": "this", "ours_plain": "this, plain loss", "trl": "TRL"}
METHODS = ("sdpo", "resd")
ROLLOUTS, GRADIENT = "rollouts and prompts", "loss, gradient, step"
TEACHER_WORDS = "{prompt}{feedback}\n\nNow answer the question above correctly."
FEEDBACK_WORDS = "\n\nWhat the environment said about an earlier, wrong response:\n\n{feedback_raw}"
"""What teacher.jinja makes of a question and its feedback, in TRL's notation."""
EMA_RATE, LEARNING_RATE = 0.05, 1e-4
LONGEST_PROMPT = 4096
"""No prompt comes near it: none is cut, and none refused."""


class Failing(Task):
    """Prompts of one length on which nobody succeeds.

    Args:
        questions: The prompts.
        feedback: What is said about every response.
    """

    def __init__(self, questions: Sequence[str], feedback: str) -> None:
        self.feedback = feedback
        self._examples = [
            Example(str(i), (Message(role="user", content=question),), None) for i, question in enumerate(questions)
        ]

    def examples(self, split: Split) -> Sequence[Example]:
        """Return the prompts, whatever the split."""
        return self._examples

    def verify(self, example: Example, response: str) -> Feedback:
        """Return a failure."""
        return Feedback(0.0, (False,), self.feedback)


def make_model(name: str, folder: Path, smollm2: Path) -> Path:
    """Write a model whose responses all reach their limit, and return its folder."""
    if name != "smollm2":
        return make_random_model(folder, SHAPES[name], stop_share=0)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").symlink_to((smollm2 / "model.safetensors").resolve())
    # Tokens that only occur in repositories' metadata: no nucleus has one of them in a chat.
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    tokenizer.eos_token, tokenizer.pad_token = "<gh_stars>", "<issue_closed>"
    tokenizer.save_pretrained(folder)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    for file in ("config.json", "generation_config.json"):
        (folder / file).write_text(json.dumps(json.loads((smollm2 / file).read_text()) | ids))
    return folder


def make_task(name: str, options: argparse.Namespace) -> Failing:
    """Return the prompts: random words for a random model, else text of about as many tokens."""
    rng = random.Random(0)
    if name != "smollm2":
        vocab = SHAPES[name].vocab
        questions = [words(options.prompt_tokens, vocab, rng) for _ in range(options.prompts)]
        return Failing(questions, words(options.feedback_tokens, vocab, rng))
    pool = ["the", "machine", "takes", "a", "tape", "of", "marks", "and", "turns", "red", "ones", "into", "blue"]
    questions = [" ".join(rng.choices(pool, k=options.prompt_tokens)) for _ in range(options.prompts)]
    return Failing(questions, " ".join(rng.choices(pool, k=options.feedback_tokens)))


class Watch(Callback):
    """Measures each of our updates, in the two parts that TRL's can be measured in as well."""

    def __init__(self) -> None:
        self.updates: list[dict[str, object]] = []
        self._stopwatch = Stopwatch()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start with the update."""
        self._stopwatch.start()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """End the first part with the first micro-batch; start the clock of the loss's phase."""
        if batch_idx == 0:
            self._stopwatch.end_part(ROLLOUTS)
        self._batch_began = time.process_time()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Book the micro-batch, the optimizer's step included."""
        pl_module.data.costs.add_time("train_processor", time.process_time() - self._batch_began)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the update's numbers; this callback is the last."""
        self._stopwatch.end_part(GRADIENT)
        module: ResdModule = pl_module
        record, costs = module.data.record, module.data.costs.take()
        rollouts = record.rollouts
        pairs = list(zip(rollouts, record.teacher_prompts, strict=True))
        trained = [(rollout.completion, prompt) for rollout, prompt in pairs if prompt.is_enriched]
        self.updates.append(
            {
                **self._stopwatch.total(),
                "parts": self._stopwatch.parts,
                "phases": {name: value for name, value in costs.items() if name.startswith("time/")},
                "tokens": {name: value for name, value in costs.items() if not name.startswith("time/")},
                "response_tokens": sum(len(rollout.completion.token_ids) for rollout in rollouts),
                "student_tokens": sum(len(c.prompt_ids) + len(c.token_ids) for c, _ in trained),
                "teacher_tokens": sum(len(prompt.token_ids) + len(c.token_ids) for c, prompt in trained),
                "loss": float(module.step_metrics()["train/loss"]),
            }
        )


class ProcessorCosts(Costs):
    """Also books the processor's seconds of each phase."""

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the time spent inside, in both kinds of seconds."""
        began = time.process_time()
        try:
            with super().timed(phase):
                yield
        finally:
            self.add_time(f"{phase}_processor", time.process_time() - began)


def fit(module: ResdModule, data: RolloutDataModule, lines: Sequence[Callback]) -> list[dict[str, object]]:
    """Run some lines of Algorithm 1, watched and with nothing else around them, and return each update's numbers."""
    data.costs = ProcessorCosts()
    watch = Watch()
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        gradient_clip_val=GRADIENT_CLIP_VAL,
        callbacks=[*lines, watch],
        **derived_arguments(data.num_updates, data.inner_updates),
    )
    trainer.fit(module, data)
    return watch.updates


def sdpo_of_ours(task: Failing, base: Path, options: argparse.Namespace, loss: str) -> list[dict[str, object]]:
    """Return the numbers of each of our updates."""
    torch.manual_seed(0)
    module = ResdModule(
        PolicyConfig(str(base), "float32", lora=LoraSettings(options.rank, 2 * options.rank)),
        TeacherConfig("ema", EMA_RATE),
        DistillationConfig(alpha=options.alpha, top_k=options.top_k, clip_min=None, loss=loss),
        OptimizerConfig(LEARNING_RATE, weight_decay=0.0, warmup_updates=0),
        ContextConfig(max_prompt_tokens=LONGEST_PROMPT),
        TeacherPromptConfig(
            playbook=False, reflection=False, trial=False, self_success="peer", max_tokens=LONGEST_PROMPT
        ),
        method="sdpo",
    )
    data = RolloutDataModule(
        task,
        HFEngine(batch_size=options.prompts * options.samples),
        batch_size=options.prompts,
        inner_updates=1 + options.repeats,
        rollouts_per_prompt=options.samples,
        micro_batch_size=options.micro_batch,
        rollout=SamplingConfig(top_p=options.top_p, max_new_tokens=options.response_tokens),
    )
    return fit(module, data, [SyncTeacher()])


def sdpo_of_trl(task: Failing, base: Path, options: argparse.Namespace) -> list[dict[str, object]]:
    """Return the numbers of each of TRL's updates."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

    updates: list[dict[str, object]] = []
    stopwatch = Stopwatch()

    class WatchTrl(TrainerCallback):
        """Measures each update; the hook in the middle is TRL's own."""

        def on_step_begin(self, args, state, control, **kwargs) -> None:
            stopwatch.start()

        def on_self_distillation_batch_prepared(
            self, completion_ids, teacher_attention_mask, self_distillation_mask, **kwargs
        ) -> None:
            stopwatch.end_part(ROLLOUTS)
            assert bool(self_distillation_mask.all())
            updates.append(
                {"response_tokens": completion_ids.numel(), "teacher_tokens": int(teacher_attention_mask.sum())}
            )

        def on_step_end(self, args, state, control, **kwargs) -> None:
            stopwatch.end_part(GRADIENT)
            updates[-1] |= {**stopwatch.total(), "parts": stopwatch.parts}

        def on_log(self, args, state, control, logs, **kwargs) -> None:
            if "loss" in logs:
                updates[-1]["loss"] = logs["loss"]

    with tempfile.TemporaryDirectory() as folder:
        settings = SDPOConfig(
            folder,
            per_device_train_batch_size=options.micro_batch,
            gradient_accumulation_steps=options.prompts * options.samples // options.micro_batch,
            max_steps=1 + options.repeats,
            num_generations=options.samples,
            shuffle_dataset=False,
            max_prompt_length=None,
            max_completion_length=options.response_tokens,
            top_p=options.top_p,
            distillation_mode="topk_logits",
            distillation_topk=options.top_k,
            distillation_add_tail=True,
            distillation_alpha=options.alpha,
            teacher_model_kind="ema",
            teacher_update_rate=EMA_RATE,
            include_environment_feedback=True,
            environment_feedback_only_without_solution=True,
            reprompt_template=TEACHER_WORDS,
            feedback_template=FEEDBACK_WORDS,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            max_grad_norm=GRADIENT_CLIP_VAL,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            logging_steps=1,
            disable_tqdm=True,
        )
        rows = [
            {"prompt": [dict(message) for message in example.messages], "privileged_context": task.feedback}
            for example in task.examples("train")
        ]
        trainer = SDPOTrainer(
            str(base),
            lambda completions, **_: [0.0] * len(completions),
            settings,
            Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(base, padding_side="left"),
            peft_config=LoraConfig(r=options.rank, lora_alpha=2 * options.rank, target_modules="all-linear"),
        )
        trainer.add_callback(WatchTrl())  # behind the one that moves the teacher
        trainer.train()
    return updates


def method_on_micro_lm(method: str, updates: int) -> list[dict[str, object]]:
    """Return the numbers of each update of a method on the quickstart, without observers."""
    configs = [ROOT / "configs/quickstart.yaml"] + ([ROOT / "configs/method/sdpo.yaml"] if method == "sdpo" else [])
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LightningCLI's args parameter")
        arguments = [f"--config={config}" for config in configs]
        cli = ResdCLI([*arguments, f"--run_dir={folder}", f"--data.max_batches={-(-2 * updates // 4)}"], run=False)
        return fit(cli.model, cli.datamodule, algorithm_callbacks(cli.trainer))


def measure(case: str, model: str, options: argparse.Namespace) -> dict[str, object]:
    """Run one case in this process and return its numbers."""
    torch.set_num_threads(options.threads)
    if case in METHODS:
        updates = method_on_micro_lm(case, options.micro_updates)[options.micro_updates : 2 * options.micro_updates]
        return {"case": case, "model": "micro-lm", "updates": updates}
    with tempfile.TemporaryDirectory() as folder:
        base = make_model(model, Path(folder) / "model", options.smollm2)
        task = make_task(model, options)
        if case == "trl":
            updates = sdpo_of_trl(task, base, options)
        else:
            updates = sdpo_of_ours(task, base, options, "plain" if case == "ours_plain" else "fused")
    best = min(updates[1:], key=lambda update: update["seconds"])  # the first is the warm-up
    peak = max(update["peak_mib"] for update in updates[1:])
    full = options.prompts * options.samples * options.response_tokens
    assert best["response_tokens"] == full, f"{best['response_tokens']} response tokens, not {full}"
    return {"case": case, "model": model, **best, "peak_mib": peak, "losses": [update["loss"] for update in updates]}


def mean(updates: Sequence[dict[str, object]], group: str) -> dict[str, float]:
    """Return the means of a group of numbers over updates, those that an update lacks counting as zero."""
    names = sorted({name for update in updates for name in update[group]})
    return {name: sum(update[group].get(name, 0.0) for update in updates) / len(updates) for name in names}


def method_numbers(result: dict[str, object]) -> dict[str, float]:
    """Return a method's mean update: seconds, and its tokens in the ways that one may count them."""
    updates = result["updates"]
    tokens = mean(updates, "tokens")
    read = sum(value for name, value in tokens.items() if name.endswith("_prompt"))
    generated = sum(value for name, value in tokens.items() if name.endswith("_generated"))
    student, teacher = (sum(u[key] for u in updates) / len(updates) for key in ("student_tokens", "teacher_tokens"))
    return {
        "seconds": sum(update["seconds"] for update in updates) / len(updates),
        "generated tokens": generated,
        # A backward pass through a frozen base with adapters costs about one forward pass, and through adapters less.
        "tokens through the model": read + generated + teacher + 2 * student,
    }


def compare(results: Sequence[dict[str, object]]) -> dict[str, object]:
    """Return the ratios that the benchmark is about."""
    by_case = {(result["model"], result["case"]): result for result in results}
    ratios: dict[str, object] = {}
    for (model, case), result in by_case.items():
        trl = by_case.get((model, "trl"))
        if case in PACKAGES and case != "trl" and trl is not None:
            parts = {name: part["seconds"] / trl["parts"][name]["seconds"] for name, part in result["parts"].items()}
            ratios[f"{model}: {PACKAGES[case]} / TRL"] = {
                "time": result["seconds"] / trl["seconds"],
                "memory": result["peak_mib"] / trl["peak_mib"],
                "time of parts": parts,
            }
    if all(("micro-lm", method) in by_case for method in METHODS):
        sdpo, resd = (method_numbers(by_case["micro-lm", method]) for method in METHODS)
        ratios["micro-lm: RESD / SDPO"] = {name: value / sdpo[name] for name, value in resd.items()}
    return ratios


def table(results: Sequence[dict[str, object]]) -> str:
    """Return the cases as tables: packages, then the phases of the methods."""
    lines = [
        "| model | package | seconds | wall | peak MiB | rollouts: s, MiB | loss and step: s, MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        if result["case"] in PACKAGES:
            parts = [f"{part['seconds']:.2f}, {part['peak_mib']:.0f}" for part in result["parts"].values()]
            numbers = f"{result['seconds']:.2f} | {result['wall_s']:.1f} | {result['peak_mib']:.0f}"
            lines.append(f"| {result['model']} | {PACKAGES[result['case']]} | {numbers} | {' | '.join(parts)} |")
    lines += ["", "| method | phase | requests | prompt tokens | generated | seconds |", "|---|---|---|---|---|---|"]
    for result in results:
        if result["case"] in METHODS:
            phases, tokens = (mean(result["updates"], group) for group in ("phases", "tokens"))
            for name in (name for name in phases if name.endswith("_processor_s")):
                phase = name.removeprefix("time/").removesuffix("_processor_s")
                counts = [
                    tokens.get(key, 0)
                    for key in (f"requests/{phase}", f"tokens/{phase}_prompt", f"tokens/{phase}_generated")
                ]
                shown = " | ".join(f"{count:.0f}" for count in counts)
                lines.append(f"| {result['case']} | {phase} | {shown} | {phases[name]:.3f} |")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, run every case, write and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["small", "qwen"], choices=[*SHAPES, "smollm2"])
    parser.add_argument("--smollm2", type=Path, default=SMOLLM2, help="its folder")
    parser.add_argument("--packages", nargs="*", default=list(PACKAGES), choices=list(PACKAGES))
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--samples", type=int, default=4, help="rollouts per prompt")
    parser.add_argument("--micro_batch", type=int, default=2)
    parser.add_argument("--prompt_tokens", type=int, default=128)
    parser.add_argument("--feedback_tokens", type=int, default=64)
    parser.add_argument("--response_tokens", type=int, default=256)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--top_k", type=int, default=100)
    parser.add_argument("--top_p", type=float, default=0.95)
    parser.add_argument("--alpha", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=1, help="updates behind the warm-up")
    parser.add_argument("--micro_updates", type=int, default=4, help="updates of micro-lm, behind as many to warm up")
    parser.add_argument("--case", nargs=2, metavar=("CASE", "MODEL"), help="measure this one here, print its numbers")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    if options.case is not None:
        print(json.dumps(rounded(measure(*options.case, options))))
        return
    packages = [name for name in options.packages if name != "trl" or find_spec("trl") is not None]
    print("left out, not installed:", ", ".join(sorted(set(options.packages) - set(packages))) or "nothing")
    not_settings = ("models", "packages", "methods", "case", "out", "smollm2")
    settings = {key: value for key, value in vars(options).items() if key not in not_settings}
    around = surroundings("resd-lightning", "torch", "transformers", "peft", "lightning", "trl")
    earlier = json.loads(options.out.read_text()) if options.out is not None and options.out.exists() else {}
    done = {(case["model"], case["case"]): case for case in earlier.get("cases", ())}
    cases = [(package, model) for model in options.models for package in packages]
    cases += [(method, "micro-lm") for method in options.methods]
    for case, model in cases:
        result = run_apart(__file__, [*sys.argv[1:], "--case", case, model])
        done[model, case] = {**result, "settings": settings, "load": around["machine"]["load"]}
        results = list(done.values())
        write(options.out, {**around, "ratios": rounded(compare(results)), "cases": results})
        print({key: value for key, value in result.items() if key != "updates"}, flush=True)
    print(table(results))
    print(json.dumps(rounded(compare(results)), indent=1))


if __name__ == "__main__":
    main()
