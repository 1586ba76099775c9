"""The datamodule: each epoch it rolls the student out and lets the context learn before it yields a micro-batch."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, cast

import torch
from jinja2 import TemplateError
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy

from resd_lightning.algorithm import Phase, algorithm_callbacks, check_algorithm, later_phases
from resd_lightning.config import Author, ConfigError, SamplingConfig, require
from resd_lightning.costs import PROMPTS_DRAWN, Costs
from resd_lightning.measure import measure_context, measure_rollouts
from resd_lightning.objectives.objective import Cut
from resd_lightning.progress import Display, NoDisplay
from resd_lightning.records import (
    Completion,
    Example,
    ExampleBatch,
    Feedback,
    MicroBatch,
    Purpose,
    Rollout,
    Split,
    UpdateRecord,
)
from resd_lightning.rollout.across_ranks import require_same, spread
from resd_lightning.rollout.chat import encode_prompt
from resd_lightning.rollout.engine import Engine, GenerationRequest, Needs, Schema
from resd_lightning.rollout.hf import HFEngine
from resd_lightning.stream import PromptStream, require_unique_ids
from resd_lightning.tasks.base import Task
from resd_lightning.tasks.verification import Verifier
from resd_lightning.training import check_trainer

if TYPE_CHECKING:
    from resd_lightning.module import ResdModule

logger = logging.getLogger(__name__)

VALIDATION = SamplingConfig(temperature=0.6)


class RolloutDataModule(LightningDataModule):
    """Prompts, responses and feedback of each update (RESD Alg. 1 lines 3 and 4), and the order of what follows.

    Args:
        task: Where prompts come from, and who judges responses.
        engine: Who generates; null is the in-process Hugging Face engine.
        batch_size: Prompts per update.
        inner_updates: Updates on each batch of prompts; K in the paper.
        rollouts_per_prompt: Responses to each prompt and update.
        micro_batch_size: Most responses per forward and backward pass; memory grows with it, results do not change.
        micro_batch_tokens: Most tokens per pass, counted behind the longer prompt; a longer response has its own.
        max_batches: Stop after this many batches of prompts; null trains on all of them.
        max_prompt_tokens: Longest question; longer ones are skipped and counted.
        rollout: Sampling of training rollouts.
        validation: Sampling of validation, test and prediction.
        validation_samples: Responses per prompt in validation; k of mean@k and best@k.
        validation_batch_size: Prompts evaluated at a time.
        predict_split: Split that `resd predict` answers.
        verify_workers: Processes that verify responses; 0 verifies in the training process.
        verify_timeout_s: Longest time for verifying one response, in seconds; a longer one fails the sample.
        seed: Seed of every sample and draw of the run; the command line sets it by --seed_everything.
    """

    def __init__(
        self,
        task: Task,
        engine: Engine | None = None,
        batch_size: int = 32,
        inner_updates: int = 4,
        rollouts_per_prompt: int = 1,
        micro_batch_size: int = 1,
        micro_batch_tokens: int | None = None,
        max_batches: int | None = None,
        max_prompt_tokens: int = 4096,
        rollout: SamplingConfig = SamplingConfig(),  # noqa: B008  # frozen
        validation: SamplingConfig = VALIDATION,
        validation_samples: int = 4,
        validation_batch_size: int = 32,
        predict_split: Split = "test",
        verify_workers: int = 0,
        verify_timeout_s: float = 60.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for key, value in {
            "batch_size": batch_size,
            "inner_updates": inner_updates,
            "rollouts_per_prompt": rollouts_per_prompt,
            "micro_batch_size": micro_batch_size,
            "max_prompt_tokens": max_prompt_tokens,
            "validation_samples": validation_samples,
            "validation_batch_size": validation_batch_size,
        }.items():
            require(value >= 1, f"data.{key}", "at least 1", value)
        is_some = micro_batch_tokens is None or micro_batch_tokens >= 1
        require(is_some, "data.micro_batch_tokens", "at least 1", micro_batch_tokens)
        require(max_batches is None or max_batches >= 1, "data.max_batches", "at least 1", max_batches)
        require(verify_workers >= 0, "data.verify_workers", "at least 0", verify_workers)
        require(verify_timeout_s > 0, "data.verify_timeout_s", "above 0", verify_timeout_s)
        self.task = task
        self.engine: Engine = HFEngine() if engine is None else engine
        self.batch_size = batch_size
        self.inner_updates = inner_updates
        self.rollouts_per_prompt = rollouts_per_prompt
        self.micro_batch_size = micro_batch_size
        self.micro_batch_tokens = micro_batch_tokens
        self.max_batches = max_batches
        self.max_prompt_tokens = max_prompt_tokens
        self.rollout = rollout
        self.validation = validation
        self.validation_samples = validation_samples
        self.validation_batch_size = validation_batch_size
        self.predict_split = predict_split
        self.seed = seed
        self.costs = Costs()
        self.record: UpdateRecord | None = None
        """What the current update made; observers read it when the epoch ends."""
        self.display: Display = NoDisplay()
        """Shows how far generation has come; `ShowProgress` lends its own."""
        self._verifier = Verifier(task, workers=verify_workers, timeout_s=verify_timeout_s)
        self._attached: object = None

    # Set-up

    @cached_property
    def stream(self) -> PromptStream:
        """The training prompts in the order updates see them."""
        return PromptStream(
            self.task.examples("train"),
            batch_size=self.batch_size,
            inner_updates=self.inner_updates,
            max_batches=self.max_batches,
        )

    @property
    def num_updates(self) -> int:
        """Updates in the whole run: batches times inner updates."""
        return self.stream.num_updates

    @property
    def module(self) -> ResdModule:
        """The module in training."""
        return cast("ResdModule", self._trainer.lightning_module)

    @property
    def _trainer(self) -> Trainer:
        if self.trainer is None:
            raise RuntimeError("the datamodule has no trainer yet")
        return self.trainer

    def setup(self, stage: str) -> None:
        """Check trainer, algorithm, lengths and task before any weight is loaded.

        Raises:
            ConfigError: The trainer breaks updates apart, its callbacks make no algorithm, a length doesn't fit the
                model, or a split is empty.
        """
        self.check_settings(stage, self.num_updates if stage == "fit" else 0, self._trainer.strategy)
        splits: dict[str, Split] = {"fit": "val", "validate": "val", "test": "test", "predict": self.predict_split}
        evaluated = self.task.examples(splits[stage])
        if not evaluated:
            raise ConfigError(f"data.task yields no examples for the split {splits[stage]!r}")
        require_unique_ids(evaluated, splits[stage])
        self._check_chats([*evaluated, *(self.stream.examples if stage == "fit" else ())])
        self.engine.prepare(self._needs(is_fit=stage == "fit"))

    def _needs(self, *, is_fit: bool) -> Needs:
        distils = is_fit and any(phase.objective != "grpo" for phase in self.phases)
        return Needs(
            self.module.policy_config,
            self.module.tokenizer,
            max(self._lengths().values()),
            self.rollout,
            is_weighed=distils and self.module.distillation_config.importance_clip is not None,
        )

    def check_settings(self, stage: str, num_updates: int, strategy: Strategy) -> None:
        """Check trainer, algorithm and lengths, for which no example and no tokenizer is read.

        Args:
            stage: What the trainer is to do.
            num_updates: Updates that it was made for.
            strategy: The run's, which a trainer that only plans it hasn't.

        Raises:
            ConfigError: The trainer breaks updates apart, its callbacks make no algorithm, the engine can't sample from
                the model, or a length doesn't fit it.
        """
        if stage == "fit":
            check_trainer(self._trainer, num_updates, self.inner_updates)
            check_algorithm(algorithm_callbacks(self._trainer), self.module.teacher_config.kind, self.phases)
            is_greedy = self.rollout.temperature == 0 and any(p.objective != "distillation" for p in self.phases)
            require(
                not is_greedy, "data.rollout.temperature", "above 0 for groups that differ", self.rollout.temperature
            )
        self.engine.check(
            self.module.policy_config,
            is_mixed=self._trainer.precision.endswith("-mixed"),
            is_sharded=isinstance(strategy, ModelParallelStrategy),
        )
        self._check_lengths()

    def _check_chats(self, examples: Sequence[Example]) -> None:
        tried: set[tuple[str, ...]] = set()
        for example in examples:
            roles = tuple(message["role"] for message in example.messages)
            if not roles or roles[-1] != "user":
                raise ConfigError(
                    f"data.task: example {example.id} must end with a user message, its roles are {roles}"
                )
            if roles in tried:
                continue
            tried.add(roles)
            try:
                encode_prompt(self.module.tokenizer, example.messages)
            except TemplateError as error:
                raise ConfigError(
                    f"data.task: the chat template refuses the roles {roles} of example {example.id} ({error}): set "
                    "model.policy.chat_template, or leave such roles out"
                ) from error

    def _lengths(self) -> dict[str, int]:
        """Return the longest sequences that the settings allow, in tokens, by their keys."""
        context, teacher = self.module.context_config, self.module.teacher_prompt_config
        asked = max(sampling.max_new_tokens for sampling in (context.reflect, context.tag, context.curate))
        return {
            "data.max_prompt_tokens + data.rollout.max_new_tokens": self.max_prompt_tokens
            + self.rollout.max_new_tokens,
            "model.teacher_prompt.max_tokens + data.rollout.max_new_tokens": teacher.max_tokens
            + self.rollout.max_new_tokens,
            "data.max_prompt_tokens + data.validation.max_new_tokens": self.max_prompt_tokens
            + self.validation.max_new_tokens,
            "model.context.max_prompt_tokens + the longest of its max_new_tokens": context.max_prompt_tokens + asked,
        }

    def _check_lengths(self) -> None:
        room = self.module.facts.max_positions
        for keys, length in self._lengths().items():
            if length > room:
                raise ConfigError(f"{keys} is {length} tokens, but model.policy.base was made for {room}")

    def teardown(self, stage: str) -> None:
        """Stop the verification workers, and let the engine go of what it holds elsewhere."""
        self._verifier.close()
        self.engine.close()

    # Loaders: plain sized iterables whose body runs when the epoch has begun, which is what makes resuming exact

    def train_dataloader(self) -> RolloutLoader:
        """Return the loader that makes one update per epoch."""
        return RolloutLoader(self)

    def val_dataloader(self) -> ExampleLoader:
        """Return the validation prompts in batches."""
        return ExampleLoader(self.task.examples("val"), self.validation_batch_size)

    def test_dataloader(self) -> ExampleLoader:
        """Return the test prompts in batches."""
        return ExampleLoader(self.task.examples("test"), self.validation_batch_size)

    def predict_dataloader(self) -> ExampleLoader:
        """Return the prompts of `predict_split` in batches."""
        return ExampleLoader(self.task.examples(self.predict_split), self.validation_batch_size)

    @property
    def phases(self) -> list[Phase]:
        """The phases that the run has, in order."""
        first = Phase(self.module.objective_name, self.rollouts_per_prompt)
        return [first, *(callback.phase for callback in later_phases(self._trainer))]

    @property
    def phase(self) -> Phase:
        """The phase that the current update belongs to."""
        update = self._trainer.current_epoch
        begun = [callback.phase for callback in later_phases(self._trainer) if callback.has_begun(update)]
        return [self.phases[0], *begun][-1]

    @property
    def num_slots(self) -> int:
        """Micro-batches of every update on every rank: enough for the fullest phase, so that all ranks stay in step."""
        return max(self._slots(phase) for phase in self.phases)

    def _slots(self, phase: Phase) -> int:
        per_rank = -(-self.batch_size * phase.rollouts_per_prompt // self._trainer.world_size)
        passes = 2 if phase.objective == "mixture" else 1  # its two losses take turns
        return passes * -(-per_rank // self.fewest_per_micro_batch)

    @property
    def fewest_per_micro_batch(self) -> int:
        """Rollouts that fit into a micro-batch, be they as long as they may."""
        if self.micro_batch_tokens is None:
            return self.micro_batch_size
        longest_prompt = max(self.max_prompt_tokens, self.module.teacher_prompt_config.max_tokens)
        fitting = self.micro_batch_tokens // (longest_prompt + self.rollout.max_new_tokens)
        return max(1, min(self.micro_batch_size, fitting))

    # One update

    def update(self) -> Iterator[MicroBatch]:
        """Make one update's rollouts, context and teacher prompts, then yield its micro-batches."""
        trainer, module, objective = self._trainer, self.module, self.module.objective
        number = trainer.current_epoch
        examples = self.stream.batch(number)
        # First of all: ranks whose playbooks differ ask different questions, and then wait for each other's answers.
        require_same(module.context.fingerprint(), f"the playbooks before update {number}")
        rollouts = self.roll_out(examples, number, Purpose.ROLLOUT)  # Alg. 1 lines 3 and 4
        record = self.record = UpdateRecord(number, rollouts, {})
        measure_rollouts(record, len(examples) * self.phase.rollouts_per_prompt)
        record.count(PROMPTS_DRAWN, len(examples) if self.stream.is_new_batch(number) else 0)
        record.metrics |= objective.measure(rollouts)
        module.context.begin_update(
            (example.id for example in examples), keep_solutions=module.context_config.keep_solutions
        )
        for callback in algorithm_callbacks(trainer) if objective.uses_teacher else ():  # lines 6 to 11
            callback.on_rollouts_end(trainer, module, record)
        with self.costs.timed("teacher_prompts"):
            record.teacher_prompts = module.build_teacher_prompts(record)  # lines 14 and 15
        module.context.seal()
        require_same(module.context.fingerprint(), f"the playbooks of update {number}")
        measure_context(record, module.context, self.task)
        record.metrics |= self.engine.take_metrics()
        torch.manual_seed(GenerationRequest(Purpose.ROLLOUT, number, "dropout", 0, ()).seed(self.seed))
        cut = Cut(
            self.micro_batch_size,
            self.num_slots,
            cast("int", module.tokenizer.pad_token_id),
            trainer.global_rank,
            trainer.world_size,
            self.micro_batch_tokens,
            module.loaded_policy.is_packed,
        )
        batches = objective.micro_batches(record.rollouts, record.teacher_prompts, cut)
        record.metrics |= objective.cut_metrics()
        yield from batches  # lines 17 and 18 are the module's training_step

    def roll_out(self, examples: Sequence[Example], update: int, purpose: Purpose) -> list[Rollout]:
        """Return verified responses of the student, in order of examples then samples; skipped prompts left out.

        Training rollouts are sampled by `rollout`; a re-scoring answers each prompt once and greedily, so that chance
        forgets nothing; all others are sampled by `validation`.
        """
        samples, sampling = self.validation_samples, self.validation
        if purpose == Purpose.ROLLOUT:
            samples, sampling = self.phase.rollouts_per_prompt, self.rollout
        elif purpose == Purpose.RESCORE:
            samples, sampling = 1, replace(self.validation, temperature=0.0)
        asked = [(example, sample) for example in examples for sample in range(samples)]
        completions = self.generate(
            [GenerationRequest(purpose, update, example.id, sample, example.messages) for example, sample in asked],
            sampling,
            author="student",
            max_prompt_tokens=self.max_prompt_tokens,
        )
        done = [(e, s, c) for (e, s), c in zip(asked, completions, strict=True) if not c.is_skipped]
        # What observes has its time apart: it may fall into the same update as the training rollouts' verification.
        phase = "rescore" if purpose == Purpose.RESCORE else "verify"
        feedback = self.verify([(e, c.text) for e, _, c in done], phase=phase)
        return [Rollout(e, s, c, f) for (e, s, c), f in zip(done, feedback, strict=True)]

    def verify(self, responses: Sequence[tuple[Example, str]], *, phase: str) -> list[Feedback]:
        """Return one feedback per response, in order and on every rank; the time goes to `phase`."""
        with self.costs.timed(phase):
            return spread(
                lambda share: self._verifier.verify([e for e, _ in share], [text for _, text in share]), responses
            )

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: SamplingConfig,
        *,
        author: Author,
        max_prompt_tokens: int,
        schema: Schema | None = None,
    ) -> list[Completion]:
        """Return one completion per request, in order and on every rank; counted, timed and shown.

        All text that a run generates comes from here. All requests of a call have one purpose.
        """
        if not requests:
            return []
        if self._attached is not self.module.loaded_policy:
            self._attached = self.module.loaded_policy
            self.engine.attach(self.module.loaded_policy, self.seed)
        purpose = requests[0].purpose

        def answer(share: Sequence[GenerationRequest]) -> list[Completion]:
            with self.display.phase(str(purpose), len(share)) as advance:
                return self.engine.generate(
                    share,
                    sampling,
                    author=author,
                    max_prompt_tokens=max_prompt_tokens,
                    schema=schema,
                    on_progress=advance,
                )

        with self.costs.timed(str(purpose)):
            completions = spread(answer, requests)
        self.costs.count(purpose, completions)
        return completions


class RolloutLoader:
    """A sized, lazy iterable: Lightning takes its length early, and its body runs inside the epoch it belongs to."""

    def __init__(self, data: RolloutDataModule) -> None:
        self._data = data

    def __len__(self) -> int:
        return self._data.num_slots

    def __iter__(self) -> Iterator[MicroBatch]:
        return self._data.update()


class ExampleLoader:
    """Examples in batches, in order; not a list, which Lightning would take for several loaders."""

    def __init__(self, examples: Sequence[Example], batch_size: int) -> None:
        self._examples = examples
        self._batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self._examples) // self._batch_size)

    def __iter__(self) -> Iterator[ExampleBatch]:
        for start in range(0, len(self._examples), self._batch_size):
            yield ExampleBatch(self._examples[start : start + self._batch_size])
