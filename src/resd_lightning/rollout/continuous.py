"""Continuous batching in this process: where a response has ended the next prompt begins, on pages of one cache.

transformers brings scheduler, paged cache and prefix sharing. This file brings what makes a sample the run's own: noise
from the request's seed, the guide of its answer, its log-probs. They go in where transformers tells a processor which
request a row of logits belongs to, in a `ContinuousBatchingLogitsProcessor`. That class is no part of transformers'
public interface, so the engine asks for the version it was made for.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib.metadata import version

import torch
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor, nn
from transformers import ContinuousBatchingConfig, ContinuousBatchingManager, GenerationConfig, PreTrainedModel
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
    ContinuousBatchingLogitsProcessorList,
)
from transformers.generation.continuous_batching.requests import FutureRequestState, GenerationOutput

from resd_lightning.config import ConfigError, PolicyConfig, SamplingConfig, require
from resd_lightning.policy.views import Policy
from resd_lightning.records import Completion
from resd_lightning.rollout.guided import JsonGuide
from resd_lightning.rollout.hf import Asked, HFEngine, completion_of, stop_ids_of
from resd_lightning.rollout.sampling import draw

MADE_FOR = (5, 24)
"""The transformers whose continuous batching this was written for and is tested with."""


class ContinuousEngine(HFEngine):
    """Generates with the model being trained, in batches that requests enter and leave one by one.

    Samples are those of `HFEngine`, but for rounding. Keys and values are kept for one call: they belong to the
    weights of that call.

    Args:
        batch_size: Most responses generated at once.
        page_tokens: Tokens of a page of the cache; prompts share whole pages of what they begin with.
        prefill_tokens: Most prompt tokens read in one forward pass.
        cache_tokens: Tokens that the cache holds; null is enough for `batch_size` of a call's longest responses.
    """

    def __init__(
        self,
        batch_size: int = 16,
        page_tokens: int = 32,
        prefill_tokens: int = 1024,
        cache_tokens: int | None = None,
    ) -> None:
        super().__init__(batch_size)
        require(page_tokens >= 4, "data.engine.init_args.page_tokens", "at least 4", page_tokens)
        require(prefill_tokens >= 1, "data.engine.init_args.prefill_tokens", "at least 1", prefill_tokens)
        is_some = cache_tokens is None or cache_tokens >= 1
        require(is_some, "data.engine.init_args.cache_tokens", "at least 1", cache_tokens)
        installed = version("transformers")
        if tuple(map(int, installed.split(".")[:2])) != MADE_FOR:
            raise ConfigError(
                f"data.engine ContinuousEngine is made for transformers {'.'.join(map(str, MADE_FOR))}, and "
                f"{installed} is installed: install that one, or take resd_lightning.rollout.hf.HFEngine"
            )
        self.page_tokens = page_tokens
        self.prefill_tokens = prefill_tokens
        self.cache_tokens = cache_tokens

    def check(self, policy: PolicyConfig, *, is_mixed: bool, is_sharded: bool = False) -> None:
        """Refuse what pages can't be kept for; see `Engine.check`."""
        if is_sharded:
            raise ConfigError(
                "data.engine ContinuousEngine generates in a thread of its own, where sharded weights can't be "
                "gathered: take resd_lightning.rollout.hf.HFEngine, or trainer.strategy ddp"
            )
        is_flash = policy.attention.startswith("flash_attention")
        is_known = is_flash or policy.attention in ("sdpa", "eager")
        rule = "sdpa, eager or flash_attention_* for data.engine ContinuousEngine"
        require(is_known, "model.policy.attention", rule, policy.attention)
        # Autocast makes values bf16 and leaves keys in the weights' precision: one cache can't hold both.
        rule = "bfloat16 for data.engine ContinuousEngine under a mixed precision of the trainer's"
        require(not is_mixed or policy.dtype == "bfloat16", "model.policy.dtype", rule, policy.dtype)

    def _respond(
        self,
        policy: Policy,
        model: PreTrainedModel | PeftModel,
        asked: Asked,
        on_progress: Callable[[int], object],
    ) -> list[Completion]:
        names = [str(i) for i in range(len(asked.prompts))]
        generators = [torch.Generator(policy.device).manual_seed(seed) for seed in asked.seeds]
        guides: dict[str, JsonGuide] = {}
        if asked.schema is not None:
            maker = self._json_guides(policy, model)
            guides = {name: maker.guide(asked.schema, [ids]) for name, ids in zip(names, asked.prompts, strict=True)}
        sampler = RequestSampling(dict(zip(names, generators, strict=True)), asked.sampling, guides)
        stop_ids = stop_ids_of(policy)
        done: dict[str, GenerationOutput] = {}
        with self._manager(policy, model, asked, sampler, stop_ids) as manager:
            # Prompts that begin alike follow each other, and what shares a batch doesn't depend on the order asked in.
            for i in sorted(range(len(names)), key=lambda i: (asked.prompts[i], asked.seeds[i])):
                manager.add_request(list(asked.prompts[i]), request_id=names[i])
            manager.start()  # with all requests there: batches are then the same in every run
            while len(done) < len(names):
                output = manager.get_result(timeout=1)
                if output is None and not manager.is_running():
                    raise RuntimeError("continuous batching ended before its requests did")
                if output is not None and output.error is not None:
                    cause = manager.background_thread_status.fatal_error
                    raise RuntimeError(f"continuous batching failed: {output.error}") from cause
                if output is not None:
                    done[output.request_id] = output
                    on_progress(1)
        log_probs = sampler.log_probs()
        return [
            completion_of(policy, ids, done[name].generated_tokens, log_probs.get(name), stop_ids)
            for name, ids in zip(names, asked.prompts, strict=True)
        ]

    @contextmanager
    def _manager(
        self,
        policy: Policy,
        model: PreTrainedModel | PeftModel,
        asked: Asked,
        sampler: RequestSampling,
        stop_ids: set[int],
    ) -> Iterator[ContinuousBatchingManager]:
        """Yield a manager that samples by `sampler`, with a cache of its own; its thread ends with the context."""
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        generation = GenerationConfig(
            max_new_tokens=asked.sampling.max_new_tokens,
            do_sample=False,  # the sampler has already drawn: the argmax is the sample
            eos_token_id=sorted(stop_ids),
            pad_token_id=policy.tokenizer.pad_token_id,
        )
        devices = [policy.device] if policy.device.type == "cuda" else []
        with torch.random.fork_rng(devices), _short_collections(), _entered_in_forward(base, policy.precision_context):
            manager = base.init_continuous_batching(generation, self._settings(asked))
            manager.logit_processor = _only(sampler)
            try:
                yield manager
            finally:
                manager.stop(block=True, hard_stop=True)  # gives the model its attention back as well
                manager.destroy()

    def _settings(self, asked: Asked) -> ContinuousBatchingConfig:
        longest = max(map(len, asked.prompts)) + asked.sampling.max_new_tokens
        if self.cache_tokens is not None and self.cache_tokens < longest:
            raise ConfigError(
                f"data.engine.init_args.cache_tokens {self.cache_tokens} can't hold a prompt with a response of "
                f"{asked.sampling.max_new_tokens} tokens, together {longest}"
            )
        together = min(self.batch_size, len(asked.prompts))
        pages = together * -(-longest // self.page_tokens)
        if self.cache_tokens is not None:
            pages = -(-self.cache_tokens // self.page_tokens)
        return ContinuousBatchingConfig(
            page_size=self.page_tokens,
            num_blocks=pages,
            max_batch_tokens=max(self.prefill_tokens, together),
            max_requests_per_batch=together,
            # Where all responses fit at their longest, no page needs to be kept free for those that have begun.
            safety_margin=0.0 if self.cache_tokens is None else None,
            # A captured graph would repeat the first step's noise, and a batch prepared ahead doesn't know its tokens.
            use_cuda_graph=False,
            use_async_batching=False,
            auto_switch_to_flash=False,  # model.policy.attention says which attention it is
            seed=0,  # of draws that aren't made
        )


class RequestSampling(ContinuousBatchingLogitsProcessor):  # type: ignore[misc]  # transformers is untyped here
    """Samples each row by its request's generator, held to its request's guide; see `SeededSampling`.

    transformers calls `prepare_tensor_args` with a step's requests and then the processor with their logits. A request
    that loses its pages and is read again goes on with its generator where it was.

    Args:
        generators: By request.
        sampling: Temperature and nucleus; temperature 0 leaves the logits alone.
        guides: By request, each for one row; empty where answers are free.
    """

    supported_kwargs: dict[str, type] = {}  # noqa: RUF012  # named and typed by the base class
    ignored_kwargs: tuple[str, ...] = ()

    def __init__(
        self,
        generators: Mapping[str, torch.Generator],
        sampling: SamplingConfig,
        guides: Mapping[str, JsonGuide],
    ) -> None:
        self._generators, self._sampling, self._guides = generators, sampling, guides
        self._rows: list[str] = []
        self._responses: list[list[int]] = []
        self._drawn: list[tuple[list[str], Float[Tensor, " row"]]] = []

    def fill_defaults(self, int32_tensor: Int[Tensor, " one"]) -> None:
        """Fill in nothing: requests reach the processor as they are, not through a tensor."""
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[FutureRequestState]) -> Int[Tensor, " none"]:
        """Remember whose logits come next, in order."""
        states = [future.state for future in requests_with_new_token]
        self._rows = [state.request_id for state in states]
        if self._guides:
            self._responses = [state.to_generation_output().generated_tokens for state in states]
        return torch.empty(0, dtype=torch.int32)

    def __call__(
        self, scores: Float[Tensor, "row vocab"], tensor_arg: Int[Tensor, " row"]
    ) -> Float[Tensor, "row vocab"]:
        """Return logits whose argmax is the sample; batches in which no request ends its prompt have none to return."""
        if not self._rows:
            return scores
        whole, scores = scores, scores[: len(self._rows)]
        if self._guides:
            for row, (name, response) in enumerate(zip(self._rows, self._responses, strict=True)):
                ids = torch.tensor([response], dtype=torch.long)  # the first call's is empty: a guide's prompt is none
                self._guides[name](ids, scores[row : row + 1])  # in place
        if self._sampling.temperature == 0:
            return whole
        noisy, log_probs = draw(scores, [self._generators[name] for name in self._rows], self._sampling)
        self._drawn.append((self._rows, log_probs))
        return torch.cat([noisy, whole[len(self._rows) :]])

    def log_probs(self) -> dict[str, list[float]]:
        """Return those of all tokens, by request; empty at temperature 0."""
        if not self._drawn:
            return {}
        values = torch.cat([log_probs for _, log_probs in self._drawn]).tolist()
        by_request: dict[str, list[float]] = {}
        for name, value in zip((name for rows, _ in self._drawn for name in rows), values, strict=True):
            by_request.setdefault(name, []).append(value)
        return by_request


def _only(sampler: RequestSampling) -> ContinuousBatchingLogitsProcessorList:
    processors = ContinuousBatchingLogitsProcessorList([sampler])
    processors.tensors_required = 1  # a row for each processor, be it empty
    return processors


@contextmanager
def _short_collections() -> Iterator[None]:
    """Leave what exists out of garbage collections: a session ends with two, each half a second over all of torch."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _entered_in_forward(model: nn.Module, context: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Put every forward pass of the model inside a context, in whatever thread it runs: autocast is a thread's own."""
    entered = ExitStack()

    def enter(*_: object) -> None:
        entered.enter_context(context())

    def leave(*_: object) -> None:
        entered.close()

    hooks = (model.register_forward_pre_hook(enter), model.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
