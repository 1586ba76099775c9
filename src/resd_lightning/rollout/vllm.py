"""Rollouts on vLLM servers that the user starts: adapters are loaded there, and token ids go both ways.

The base stays where it is; each update's student is saved to a folder that servers share and loaded under a name of its
own. Loaded in place instead, under one name, vLLM 0.32 reads the files anew at every token. docs/vllm.md has the
commands, and what is checked when.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError
from torch import Tensor

from resd_lightning.config import Author, ConfigError, PolicyConfig, SamplingConfig, require
from resd_lightning.policy.views import Policy
from resd_lightning.records import Completion, Purpose
from resd_lightning.rollout.across_ranks import from_all_ranks, on_first_rank
from resd_lightning.rollout.chat import decode_response, encode_prompt
from resd_lightning.rollout.engine import Engine, EngineError, GenerationRequest, Needs, Schema
from resd_lightning.rollout.hf import stop_ids_of
from resd_lightning.rollout.parity import Gap, Scored, measure_gap
from resd_lightning.rollout.vllm_checks import KEY, check_log_probs, check_server, given_temperature
from resd_lightning.rollout.vllm_client import (
    Answer,
    Ask,
    Patience,
    RequestRefused,
    ServedModel,
    VllmServer,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Adapter:
    """Weights that the servers have been given.

    Attributes:
        update: Updates behind them.
        name: What requests call them.
        folder: Where servers read them, also when they load them again.
    """

    update: int
    name: str
    folder: Path


class VllmEngine(Engine):
    """Generates on vLLM servers; every sample has its own seed there.

    Args:
        servers: Addresses, for example http://localhost:8000; prompts go to them in turn.
        adapter_folder: Folder that this process and every server see under the same path.
        timeout_s: Longest wait for one answer, in seconds; it must outlast the longest response.
        retries: Further tries where a server is gone, slow or failing; then the run stops.
        retry_pause_s: Pause before the first of them, in seconds; each next is twice as long, up to half a minute.
        concurrency: Requests under way at a time, per server.
        parity_every: Compare log-probs with the trainer's at the start and then every this many updates.
        parity_samples: Responses compared each time, on each rank.
        parity_threshold: Largest mean difference of log-probs, in nats a token; beyond it the run stops.
    """

    is_apart = True

    def __init__(
        self,
        servers: list[str],
        adapter_folder: str,
        timeout_s: float = 600.0,
        retries: int = 10,
        retry_pause_s: float = 1.0,
        concurrency: int = 64,
        parity_every: int = 10,
        parity_samples: int = 4,
        parity_threshold: float = 0.1,
    ) -> None:
        is_address = bool(servers) and all(url.startswith(("http://", "https://")) for url in servers)
        require(is_address, f"{KEY}.servers", "addresses that begin with http:// or https://", servers)
        require(len(set(servers)) == len(servers), f"{KEY}.servers", "named once each", servers)
        require(bool(adapter_folder), f"{KEY}.adapter_folder", "a folder", adapter_folder)
        require(timeout_s > 0, f"{KEY}.timeout_s", "above 0", timeout_s)
        require(retries >= 0, f"{KEY}.retries", "at least 0", retries)
        require(retry_pause_s >= 0, f"{KEY}.retry_pause_s", "at least 0", retry_pause_s)
        for key, value in {
            "concurrency": concurrency,
            "parity_every": parity_every,
            "parity_samples": parity_samples,
        }.items():
            require(value >= 1, f"{KEY}.{key}", "at least 1", value)
        require(parity_threshold > 0, f"{KEY}.parity_threshold", "above 0", parity_threshold)
        patience = Patience(timeout_s, retries, retry_pause_s)
        self._servers = [VllmServer(url, patience) for url in servers]
        self._patience = patience
        self._folder = Path(adapter_folder).absolute()
        self._concurrency = concurrency
        self._parity_every = parity_every
        self._parity_samples = parity_samples
        self._parity_threshold = parity_threshold
        self._bases: list[ServedModel] = []
        self._is_raw = True
        self._policy: Policy | None = None
        self._run_seed = 0
        self._token = ""
        self._adapters: dict[Author, Adapter] = {}
        self._checked_at: int | None = None
        self._metrics: dict[str, float] = {}

    # Before training

    def check(self, policy: PolicyConfig, *, is_mixed: bool, is_sharded: bool = False) -> None:
        """Refuse weights that can't be pushed; see `Engine.check`."""
        if policy.lora is None:
            raise ConfigError(
                "data.engine VllmEngine is given adapters and no other weights: set model.policy.lora, or take "
                "HFEngine for full fine-tuning"
            )

    def prepare(self, needs: Needs) -> None:
        """Check every server against what the run will ask of it; see `Engine.prepare`.

        Raises:
            ConfigError: A server can't be reached, serves another tokenizer, is too short, or takes no adapters; or its
                log-probs aren't those that the run needs. The text says what to start it with.
        """
        served = [check_server(server, self._folder, needs) for server in self._servers]
        self._bases = [base for base, _ in served]
        modes = {is_raw for _, is_raw in served}
        require(len(modes) == 1, f"{KEY}.servers", "started with one --logprobs-mode", [s.url for s in self._servers])
        self._is_raw = modes.pop()
        check_log_probs(self._servers[0], is_raw=self._is_raw, needs=needs)

    # Generating

    def attach(self, policy: Policy, run_seed: int) -> None:
        """Bind the engine to the weights it pushes and to the run's seed."""
        self._policy, self._run_seed = policy, run_seed
        self._adapters, self._checked_at = {}, None

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
        """Return one completion per request, in order; see `Engine.generate`.

        Raises:
            EngineError: A server gave no answer for all its tries, or its log-probs are too far from the trainer's.
        """
        policy = self._policy
        if policy is None or not self._bases:
            raise RuntimeError("VllmEngine.generate was called before prepare and attach")
        # The first rank always has a request; the others may have none to tell update and purpose by.
        adapter = self._push(policy, author, requests)
        is_due = on_first_rank(lambda: self._is_parity_due(author, requests, schema), EngineError)
        prompts = [encode_prompt(policy.tokenizer, request.messages) for request in requests]
        stop_ids = tuple(sorted(stop_ids_of(policy)))
        turns = {example_id: turn for turn, example_id in enumerate(dict.fromkeys(r.example_id for r in requests))}
        asks: dict[int, tuple[int, Ask]] = {}
        for i, (request, prompt_ids) in enumerate(zip(requests, prompts, strict=True)):
            if len(prompt_ids) <= max_prompt_tokens:
                turn = turns[request.example_id] % len(self._servers)
                ask = Ask(
                    self._bases[turn].name if adapter is None else adapter.name,
                    prompt_ids,
                    sampling.max_new_tokens,
                    sampling.temperature,
                    sampling.top_p,
                    request.seed(self._run_seed),
                    stop_ids,
                    schema,
                )
                asks[i] = (turn, ask)
        on_progress(len(requests) - len(asks))
        answers = self._answers(asks, adapter, on_progress)
        given = given_temperature(sampling, is_raw=self._is_raw)
        if is_due:
            self._check_parity(policy, [(prompts[i], answer) for i, answer in answers.items()], given)
        # Those of guided answers are over what the schema allowed, in either mode.
        is_known = schema is None and sampling.temperature > 0 and given == sampling.temperature
        return [
            _completion(policy, prompt_ids, answers[i], stop_ids, is_known=is_known)
            if i in answers
            else Completion("", prompt_ids, (), is_skipped=True)
            for i, prompt_ids in enumerate(prompts)
        ]

    def _is_parity_due(self, author: Author, requests: Sequence[GenerationRequest], schema: Schema | None) -> bool:
        update = requests[0].update
        is_comparable = author == "student" and schema is None
        is_due = is_comparable and (
            self._checked_at is None
            or (requests[0].purpose == Purpose.ROLLOUT and update >= self._checked_at + self._parity_every)
        )
        if is_due:
            self._checked_at = update
        return is_due

    def _push(self, policy: Policy, author: Author, requests: Sequence[GenerationRequest]) -> Adapter | None:
        """Return the adapter that answers; the first rank gives it to the servers where they lack it."""
        if author == "base":
            return None
        current, update = on_first_rank(lambda: (self._adapters.get(author), requests[0].update), EngineError)
        if current is not None and current.update == update:
            return current
        weights = policy.weights_to_save(author)  # all ranks together, where each has a share
        return on_first_rank(lambda: self._save_and_load(policy, author, update, weights), EngineError)

    def _save_and_load(
        self, policy: Policy, author: Literal["student", "teacher"], update: int, weights: dict[str, Tensor] | None
    ) -> Adapter:
        started = time.perf_counter()
        # Of this process alone: another run may use the same servers and folder, and must not get these weights.
        self._token = self._token or secrets.token_hex(4)
        name = f"resd-{self._token}-{author}-{update:05d}"
        adapter = Adapter(update, name, self._folder / name)
        try:
            policy.save_adapter(adapter.folder, author, weights)
            _make_readable(adapter.folder)
        except (OSError, SafetensorError) as error:  # said to all ranks, which wait
            raise EngineError(f"{KEY}.adapter_folder: the adapter can't be saved: {error}") from error
        for server in self._servers:
            _load(server, adapter)
        outdated = self._adapters.get(author)
        self._adapters[author] = adapter
        if outdated is not None:
            self._withdraw(outdated)
        seconds = time.perf_counter() - started
        self._count("vllm/adapters_loaded", 1)
        self._count("vllm/push_s", seconds)
        logger.info("gave the %s of update %d to %d servers in %.1f s", author, update, len(self._servers), seconds)
        return adapter

    def _withdraw(self, adapter: Adapter) -> None:
        for server in self._servers:
            server.unload_adapter(adapter.name)
        shutil.rmtree(adapter.folder, ignore_errors=True)

    def _answers(
        self, asks: Mapping[int, tuple[int, Ask]], adapter: Adapter | None, on_progress: Callable[[int], object]
    ) -> dict[int, Answer]:
        """Return the servers' answers, or raise on every rank what one of them met."""
        failure: EngineError | None = None
        answers: dict[int, Answer] = {}
        before = self._failed_tries()
        try:
            answers = self._sample(asks, adapter, on_progress)
        except EngineError as error:
            failure = error
        reports = from_all_ranks((None if failure is None else str(failure), self._failed_tries() - before))
        self._count("vllm/failed_tries", sum(tries for _, tries in reports))
        if failure is not None:
            raise failure
        for reason, _ in reports:
            if reason is not None:
                raise EngineError(reason)
        return answers

    def _sample(
        self, asks: Mapping[int, tuple[int, Ask]], adapter: Adapter | None, on_progress: Callable[[int], object]
    ) -> dict[int, Answer]:
        answers: dict[int, Answer] = {}
        for server in self._servers:
            server.resume()
        with ThreadPoolExecutor(self._concurrency * len(self._servers), "vllm") as pool:
            futures = {pool.submit(self._answer, turn, ask, adapter): i for i, (turn, ask) in asks.items()}
            try:
                for future in as_completed(futures):
                    answers[futures[future]] = future.result()
                    on_progress(1)
            except BaseException:  # an interrupt too: the pool would wait for what is under way
                pool.shutdown(wait=False, cancel_futures=True)
                for server in self._servers:
                    server.stop()
                raise
        return answers

    def _answer(self, turn: int, ask: Ask, adapter: Adapter | None) -> Answer:
        """Return one answer; a server that has been started anew is given the adapter again."""
        server, reloads = self._servers[turn], 0
        while True:
            try:
                return server.complete(ask)
            except RequestRefused as error:
                if error.status != 404 or adapter is None or reloads >= max(1, self._patience.retries):
                    raise
                reloads += 1
                logger.warning("%s: giving it the adapter again", error)
                _load(server, adapter)

    # What is measured

    def _check_parity(
        self, policy: Policy, answered: Sequence[tuple[tuple[int, ...], Answer]], temperature: float | None
    ) -> None:
        """Compare some responses' log-probs with the trainer's, over all ranks.

        Raises:
            EngineError: They differ by more than the threshold.
        """
        if temperature is None:  # cut by top-p, as validation's may be: the next call is looked at instead
            self._checked_at = None
            return
        with_tokens = [(prompt_ids, answer) for prompt_ids, answer in answered if answer.token_ids]
        step = -(-len(with_tokens) // self._parity_samples) if with_tokens else 1
        scored = [Scored(prompt_ids, a.token_ids, a.log_probs) for prompt_ids, a in with_tokens[::step]]
        own = measure_gap(policy, scored, temperature, self._parity_samples)
        gap = reduce(add, from_all_ranks(own), Gap())
        self._metrics |= {
            "vllm/logprob_gap_mean": gap.mean,
            "vllm/logprob_gap_max": gap.largest,
            "vllm/logprob_gap_tokens": float(gap.tokens),
        }
        logger.info("log-probs of %d tokens: mean gap %.2g nats, largest %.2g", gap.tokens, gap.mean, gap.largest)
        if not gap.mean <= self._parity_threshold:  # not a number is a gap too
            raise EngineError(
                f"the servers' log-probs are {gap.mean:.3g} nats a token off the trainer's (largest {gap.largest:.3g}, "
                f"of {gap.tokens}), more than {KEY}.parity_threshold {self._parity_threshold:g}: do they serve the "
                "base that is trained (for an NF4 base what `resd dequantize` wrote), in its precision?"
            )

    def take_metrics(self) -> dict[str, float]:
        """Return parity, adapters given and failed tries since the last call."""
        metrics, self._metrics = on_first_rank(lambda: self._metrics, EngineError), {}
        return metrics

    def close(self) -> None:
        """Have the servers forget this run's adapters, and delete their files."""
        for adapter in self._adapters.values():
            self._withdraw(adapter)
        self._adapters = {}

    def _count(self, name: str, amount: float) -> None:
        self._metrics[name] = self._metrics.get(name, 0.0) + amount

    def _failed_tries(self) -> int:
        return sum(server.failed_tries for server in self._servers)


def _load(server: VllmServer, adapter: Adapter) -> None:
    try:
        server.load_adapter(adapter.name, adapter.folder)
    except RequestRefused as error:
        if "already been loaded" not in error.said:  # by another thread, or by a try whose answer was lost
            raise


def _make_readable(folder: Path) -> None:
    """Let a server under another user read what was saved, which safetensors keeps to its owner."""
    folder.chmod(0o755)
    for file in folder.iterdir():
        file.chmod(0o644)


def _completion(
    policy: Policy, prompt_ids: tuple[int, ...], answer: Answer, stop_ids: Sequence[int], *, is_known: bool
) -> Completion:
    text = decode_response(policy.tokenizer, prompt_ids, answer.token_ids)
    is_ended = bool(answer.token_ids) and answer.token_ids[-1] in stop_ids
    log_probs = answer.log_probs if is_known else None
    return Completion(text, prompt_ids, answer.token_ids, is_truncated=not is_ended, log_probs=log_probs)
