"""The in-process engine: transformers' `generate` on the policy's own weights, sampling from seeded noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from resd_lightning.config import Author, SamplingConfig, require
from resd_lightning.policy.views import Policy
from resd_lightning.records import Completion
from resd_lightning.rollout.chat import decode_response, encode_prompt
from resd_lightning.rollout.engine import Engine, GenerationRequest, Schema
from resd_lightning.rollout.guided import JsonGuides
from resd_lightning.rollout.sampling import SeededSampling


@dataclass(frozen=True)
class Asked:
    """Prompts to answer, and how.

    Attributes:
        prompts: Their tokens.
        seeds: The seed of each one's noise.
        sampling: How tokens are drawn.
        schema: JSON schema that responses are held to; None for free ones.
    """

    prompts: Sequence[tuple[int, ...]]
    seeds: Sequence[int]
    sampling: SamplingConfig
    schema: Schema | None


class HFEngine(Engine):
    """Generates with the model being trained, in left-padded batches of prompts of similar length.

    Args:
        batch_size: Most responses generated at once; memory grows with it, samples do not change with it.
    """

    def __init__(self, batch_size: int = 16) -> None:
        require(batch_size >= 1, "data.engine.init_args.batch_size", "at least 1", batch_size)
        self.batch_size = batch_size
        self._policy: Policy | None = None
        self._run_seed = 0
        self._guides: JsonGuides | None = None

    def attach(self, policy: Policy, run_seed: int) -> None:
        """Bind the engine to the weights it samples from and to the run's seed."""
        self._policy, self._run_seed, self._guides = policy, run_seed, None

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: SamplingConfig,
        *,
        author: Author,
        max_prompt_tokens: int,
        schema: Schema | None,
        on_progress: Callable[[int], object],
    ) -> list[Completion]:
        """Return one completion per request, in order; see `Engine.generate`."""
        if self._policy is None:
            raise RuntimeError(f"{type(self).__name__}.generate was called before attach")
        prompts = [encode_prompt(self._policy.tokenizer, request.messages) for request in requests]
        completions: dict[int, Completion] = {
            i: Completion("", ids, (), is_skipped=True) for i, ids in enumerate(prompts) if len(ids) > max_prompt_tokens
        }
        on_progress(len(completions))
        ready = [i for i in range(len(requests)) if i not in completions]
        with self._policy.frozen(author) as model, self._policy.gathered(model):  # all ranks, also those without work
            if ready:
                seeds = [requests[i].seed(self._run_seed) for i in ready]
                asked = Asked([prompts[i] for i in ready], seeds, sampling, schema)
                completions.update(zip(ready, self._respond(self._policy, model, asked, on_progress), strict=True))
        return [completions[i] for i in range(len(requests))]

    def _respond(
        self,
        policy: Policy,
        model: PreTrainedModel | PeftModel,
        asked: Asked,
        on_progress: Callable[[int], object],
    ) -> list[Completion]:
        """Return a completion of each prompt, in order; there is one prompt at least."""
        by_length = sorted(range(len(asked.prompts)), key=lambda i: len(asked.prompts[i]))
        completions: dict[int, Completion] = {}
        for start in range(0, len(by_length), self.batch_size):
            chunk = by_length[start : start + self.batch_size]
            sampler = SeededSampling([asked.seeds[i] for i in chunk], asked.sampling, policy.device)
            prompts = [asked.prompts[i] for i in chunk]
            guide: list[LogitsProcessor] = []
            if asked.schema is not None:
                guide = [self._json_guides(policy, model).guide(asked.schema, prompts)]
            done = _generate_chunk(policy, model, prompts, guide, sampler, asked.sampling.max_new_tokens)
            completions.update(zip(chunk, done, strict=True))
            on_progress(len(chunk))
        return [completions[i] for i in range(len(by_length))]

    def _json_guides(self, policy: Policy, model: PreTrainedModel | PeftModel) -> JsonGuides:
        if self._guides is None:
            vocab_size = model.get_output_embeddings().weight.shape[0]
            self._guides = JsonGuides(policy.tokenizer, vocab_size, stop_ids_of(policy))
        return self._guides


def _generate_chunk(
    policy: Policy,
    model: PreTrainedModel | PeftModel,
    prompts: Sequence[tuple[int, ...]],
    guide: Sequence[LogitsProcessor],
    sampler: SeededSampling,
    max_new_tokens: int,
) -> list[Completion]:
    tokenizer = policy.tokenizer
    padded = tokenizer.pad({"input_ids": [list(ids) for ids in prompts]}, padding=True, return_tensors="pt")
    padded = padded.to(policy.device)
    stop_ids = stop_ids_of(policy)
    output: Tensor = model.generate(
        input_ids=padded["input_ids"],
        attention_mask=padded["attention_mask"],
        logits_processor=LogitsProcessorList([*guide, sampler]),
        generation_config=GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,  # the sampler, the last processor, has already drawn: the argmax is the sample
            eos_token_id=sorted(stop_ids),
            pad_token_id=tokenizer.pad_token_id,
        ),
        synced_gpus=False,  # a sharded policy is gathered, so ranks needn't wait for each other at every token
    )
    prompt_length = padded["input_ids"].shape[1]
    responses = output[:, prompt_length:].tolist()
    steps = torch.stack(sampler.log_probs, dim=1).tolist() if sampler.log_probs else [None] * len(prompts)
    return [
        completion_of(policy, ids, row, log_probs, stop_ids)
        for ids, row, log_probs in zip(prompts, responses, steps, strict=True)
    ]


def completion_of(
    policy: Policy, prompt_ids: tuple[int, ...], row: list[int], log_probs: list[float] | None, stop_ids: set[int]
) -> Completion:
    """Return what a prompt's response comes to: it ends with its first stop token, and is truncated without one."""
    end = next((i + 1 for i, token in enumerate(row) if token in stop_ids), None)
    token_ids = tuple(row[:end])
    text = decode_response(policy.tokenizer, prompt_ids, token_ids)
    known = None if log_probs is None else tuple(log_probs[: len(token_ids)])
    return Completion(text, prompt_ids, token_ids, is_truncated=end is None, log_probs=known)


def stop_ids_of(policy: Policy) -> set[int]:
    """Return the tokens that end a response: those of the base's generation config, and the tokenizer's."""
    configured = policy.model.generation_config.eos_token_id
    many = configured if isinstance(configured, list) else [configured]
    return {int(i) for i in [*many, policy.tokenizer.eos_token_id] if i is not None}
