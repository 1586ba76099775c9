"""One vLLM server over HTTP: what is asked of it, what it may answer, and how often it is asked again.

Written for and recorded from vLLM 0.32; answers are read by their shape, so that a server that speaks otherwise is
told apart from one that fails.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar, cast
from urllib.parse import urlsplit

from resd_lightning.rollout.engine import EngineError, Schema

logger = logging.getLogger(__name__)

API_KEY_VARIABLE = "VLLM_API_KEY"
"""Where the server itself looks for the key that it asks for."""
LONGEST_PAUSE_S = 30.0
IMPATIENT_TIMEOUT_S = 60.0
"""Longest wait for what is asked once and no model has to run for."""
WORTH_ANOTHER_TRY = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses of a server that is busy, starting or ending; the others say that the request is at fault."""

Json = Mapping[str, object]
Read = TypeVar("Read")


class ServerError(EngineError):
    """A server can't be used any further; the message says which, and what it said last."""


class ServerUnavailable(ServerError):
    """It didn't answer, failed, or answered what can't be read: another try may help."""


class RequestRefused(ServerError):
    """It answered that the request is at fault: another try would be refused as well.

    Args:
        message: Which server, what was asked and what it said.
        status: The HTTP status.
        said: The server's own words.
    """

    def __init__(self, message: str, status: int, said: str) -> None:
        super().__init__(message)
        self.status = status
        self.said = said


@dataclass(frozen=True)
class Patience:
    """How long a server is waited for.

    Attributes:
        timeout_s: Longest wait for one answer, in seconds.
        retries: Further tries after a failed one.
        pause_s: Pause before the first of them, in seconds; each next is twice as long, up to `LONGEST_PAUSE_S`.
    """

    timeout_s: float
    retries: int
    pause_s: float

    def pause(self, tries: int) -> float:
        """Return the pause in seconds after so many failed tries, at least one."""
        return min(LONGEST_PAUSE_S, self.pause_s * 2.0 ** (tries - 1))


@dataclass(frozen=True)
class ServedModel:
    """A model that a server serves.

    Attributes:
        name: What requests call it.
        root: Where the server read it from.
        max_tokens: Longest prompt and response together.
    """

    name: str
    root: str
    max_tokens: int


@dataclass(frozen=True)
class Answer:
    """What a server sampled.

    Attributes:
        token_ids: The response's tokens, the one that ended it included.
        log_probs: Of each of them, in nats, in the server's own mode.
    """

    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]


@dataclass(frozen=True)
class Ask:
    """One response to sample.

    Attributes:
        model: The served model's or the adapter's name.
        prompt_ids: Tokens of the prompt; the server tokenizes nothing.
        max_new_tokens: Longest response, in tokens.
        temperature: Divides the logits; 0 is greedy.
        top_p: Mass of the tokens sampled from.
        seed: Of this request alone.
        stop_ids: Tokens that end the response.
        schema: JSON schema that the response is held to; None for none.
    """

    model: str
    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    stop_ids: tuple[int, ...]
    schema: Schema | None = None

    def body(self) -> dict[str, object]:
        """Return the request's JSON: whatever a base recommends for generation is set to do nothing."""
        body: dict[str, object] = {
            "model": self.model,
            "prompt": list(self.prompt_ids),
            "max_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": self.seed,
            "stop_token_ids": list(self.stop_ids),
            "logprobs": 0,  # of the sampled tokens, and of no others
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
        if self.schema is not None:
            body["structured_outputs"] = {"json": self.schema}
        return body


class VllmServer:
    """Asks one server.

    Args:
        url: Where it listens, for example http://localhost:8000; /v1 behind it is understood.
        patience: How long it is waited for.
    """

    def __init__(self, url: str, patience: Patience) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._patience = patience
        self.failed_tries = 0
        """Calls without an answer so far, tried again or not."""
        self._stopped = threading.Event()
        self._told = 0
        self._open: set[http.client.HTTPConnection] = set()
        self._lock = threading.Lock()

    def stop(self) -> None:
        """Break off what is under way in other threads: the server drops it, and no further try begins."""
        self._stopped.set()
        with self._lock:
            for connection in self._open:
                if connection.sock is not None:
                    with suppress(OSError):  # closed a moment ago
                        connection.sock.shutdown(socket.SHUT_RDWR)

    def resume(self) -> None:
        """Allow calls again."""
        self._stopped.clear()
        self._told = 0

    def models(self, *, is_patient: bool = True) -> list[ServedModel]:
        """Return the base models that are served, adapters left out.

        Raises:
            ServerError: See `_call`.
        """
        return self._call("GET", "/v1/models", None, _read_models, is_patient=is_patient)

    def tokenize(self, model: str, text: str) -> tuple[int, ...]:
        """Return a text's tokens by the server's tokenizer, no special ones added; see `_call` for what it raises."""
        body = {"model": model, "prompt": text, "add_special_tokens": False}
        return self._call("POST", "/tokenize", body, lambda answered: _integers(answered["tokens"]))

    def load_adapter(self, name: str, folder: Path, *, is_patient: bool = True) -> None:
        """Have the server read an adapter, and serve it under a name that it has no adapter of yet.

        Raises:
            ServerError: See `_call`.
        """
        body = {"lora_name": name, "lora_path": str(folder)}
        self._call("POST", "/v1/load_lora_adapter", body, _read_nothing, is_patient=is_patient)

    def unload_adapter(self, name: str) -> None:
        """Have the server forget an adapter; one that it doesn't know is forgotten already."""
        try:
            self._call("POST", "/v1/unload_lora_adapter", {"lora_name": name}, _read_nothing, is_patient=False)
        except ServerError as error:  # what is left over there costs it a few bytes
            logger.debug("%s", error)

    def is_raw(self, model: str) -> bool:
        """Return whether log-probabilities are those before the temperature, as a server gives them by default."""
        return abs(self._top_log_prob(model, 1.0) - self._top_log_prob(model, 2.0)) < 1e-3

    def _top_log_prob(self, model: str, temperature: float) -> float:
        """Return the log-probability of the likeliest token behind token 1."""
        body = {**Ask(model, (1,), 1, temperature, 1.0, 0, ()).body(), "logprobs": 1}
        return self._call("POST", "/v1/completions", body, _read_top_log_prob)

    def complete(self, ask: Ask) -> Answer:
        """Return one sampled response.

        Raises:
            ServerError: See `_call`.
        """
        return self._call("POST", "/v1/completions", ask.body(), partial(_read_completion, ask))

    def _call(
        self,
        method: str,
        path: str,
        body: Json | None,
        read: Callable[[Json], Read],
        *,
        is_patient: bool = True,
    ) -> Read:
        """Return what `read` makes of a call's answer; tried again, as `Patience` has it, where that can't be read.

        Raises:
            RequestRefused: The server says that the request is at fault.
            ServerUnavailable: No try brought a readable answer.
        """
        timeout_s = self._patience.timeout_s if is_patient else min(IMPATIENT_TIMEOUT_S, self._patience.timeout_s)
        tries = 0
        while True:
            try:
                answered = self._call_once(method, path, body, timeout_s)
                try:
                    return read(answered)
                except (LookupError, TypeError, ValueError, AttributeError) as error:
                    what = f"an answer that can't be read ({type(error).__name__}: {error}): {_short(answered)}"
                    raise ServerUnavailable(f"{self.url}{path}: {what}") from error
            except ServerUnavailable as error:
                tries += 1
                self._note_failure(tries, error)
                if not is_patient or tries > self._patience.retries:
                    raise ServerUnavailable(f"{error}, after {tries} tries") from error
                if self._stopped.wait(self._patience.pause(tries)):
                    raise

    def _note_failure(self, tries: int, error: ServerUnavailable) -> None:
        """Count a failed try, and tell of it once for all threads that have failed as often."""
        with self._lock:
            self.failed_tries += 1
            is_news, self._told = tries > self._told, max(tries, self._told)
        if is_news:
            logger.warning("%s; tried %d times of %d", error, tries, 1 + self._patience.retries)

    def _call_once(self, method: str, path: str, body: Json | None, timeout_s: float) -> Json:
        place = urlsplit(self.url)
        kind = http.client.HTTPSConnection if place.scheme == "https" else http.client.HTTPConnection
        connection = kind(place.netloc, timeout=timeout_s)
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := os.environ.get(API_KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        with self._lock:
            self._open.add(connection)
        try:
            connection.request(method, place.path + path, body=data, headers=headers)
            response = connection.getresponse()
            status, text = response.status, response.read().decode("utf-8", "replace")
        except TimeoutError as error:
            raise ServerUnavailable(f"{self.url}{path}: no answer in {timeout_s:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
            raise ServerUnavailable(f"{self.url}{path}: {reason}") from error
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()
        if status in WORTH_ANOTHER_TRY and not _is_final(text):
            raise ServerUnavailable(f"{self.url}{path}: status {status}, {_message(text)}")
        if not 200 <= status < 300:
            said = _message(text)
            raise RequestRefused(f"{self.url}{path}: refused with status {status}: {said}", status, said)
        return _parsed(text, f"{self.url}{path}")


def _is_final(text: str) -> bool:
    # vLLM reports what is wrong with an adapter as its own failure, status 500.
    return "add_lora" in text


def _parsed(text: str, where: str) -> Json:
    if text.startswith("Success"):  # how adapters are acknowledged
        return {"text": text}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ServerUnavailable(f"{where}: an answer that is no JSON: {_short(text)}") from error
    if not isinstance(value, dict):
        raise ServerUnavailable(f"{where}: an answer that is no JSON object: {_short(value)}")
    return value


def _read_nothing(answered: Json) -> None:
    """Take any answer."""


def _read_models(answered: Json) -> list[ServedModel]:
    entries = cast("list[dict[str, object]]", answered["data"])
    return [
        ServedModel(str(entry["id"]), str(entry["root"]), int(cast("int", entry["max_model_len"])))
        for entry in entries
        if entry["parent"] is None
    ]


def _read_top_log_prob(answered: Json) -> float:
    (choice,) = cast("list[dict[str, dict[str, list[dict[str, float]]]]]", answered["choices"])
    return max(float(value) for value in choice["logprobs"]["top_logprobs"][0].values())


def _read_completion(ask: Ask, answered: Json) -> Answer:
    (choice,) = cast("list[dict[str, object]]", answered["choices"])
    token_ids = _integers(choice["token_ids"])
    log_probs = tuple(float(value) for value in cast("dict[str, list[float]]", choice["logprobs"])["token_logprobs"])
    if answered["model"] != ask.model or _integers(choice["prompt_token_ids"]) != ask.prompt_ids:
        raise ValueError("it is to another prompt, or by another model")
    if len(log_probs) != len(token_ids):
        raise ValueError(f"{len(token_ids)} tokens have {len(log_probs)} log-probabilities")
    return Answer(token_ids, log_probs)


def _integers(values: object) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise TypeError(f"expected a list of integers, got {_short(values)}")
    return tuple(values)


def _message(text: str) -> str:
    """Return the words in a refusal: {"error": {"message": ...}}, {"detail": ...}, or any text."""
    try:
        value = json.loads(text)
    except ValueError:
        return _short(text)
    match value:
        case {"error": {"message": str(said)}} | {"detail": str(said)} | {"message": str(said)}:
            return _short(said)
    return _short(value)


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 300 else f"{text[:300]}..."
