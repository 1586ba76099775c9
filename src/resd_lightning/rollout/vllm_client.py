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
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from resd_lightning.rollout.engine import EngineError, Schema

logger = logging.getLogger(__name__)

API_KEY_VARIABLE = "VLLM_API_KEY"
"""Where the server itself looks for the key that it asks for."""
LONGEST_PAUSE_S = 30.0
WORTH_ANOTHER_TRY = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses of a server that is busy, starting or ending; the others say that the request is at fault."""

Json = Mapping[str, object]


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

    def models(self, *, is_patient: bool = True) -> list[ServedModel]:
        """Return the base models that are served, adapters left out.

        Raises:
            ServerError: See `_call`.
        """
        listed = self._call("GET", "/v1/models", None, is_patient=is_patient)
        try:
            entries = cast("list[dict[str, object]]", listed["data"])
            return [
                ServedModel(str(entry["id"]), str(entry["root"]), int(cast("int", entry["max_model_len"])))
                for entry in entries
                if entry["parent"] is None
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise ServerUnavailable(f"{self.url}/v1/models is no list of vLLM's: {_short(listed)}") from error

    def tokenize(self, model: str, text: str) -> tuple[int, ...]:
        """Return a text's tokens by the server's tokenizer, no special ones added; see `_call` for what it raises."""
        body = {"model": model, "prompt": text, "add_special_tokens": False}
        answered = self._call("POST", "/tokenize", body)
        return tuple(_integers(answered, "tokens", f"{self.url}/tokenize"))

    def load_adapter(self, name: str, folder: Path, *, is_patient: bool = True) -> None:
        """Have the server read an adapter, and serve it under a name that it has no adapter of yet.

        Raises:
            ServerError: See `_call`.
        """
        self._call(
            "POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)}, is_patient=is_patient
        )

    def unload_adapter(self, name: str) -> None:
        """Have the server forget an adapter; one that it doesn't know is forgotten already."""
        try:
            self._call("POST", "/v1/unload_lora_adapter", {"lora_name": name}, is_patient=False)
        except ServerError as error:  # what is left over there costs it a few bytes
            logger.debug("%s", error)

    def top_log_prob(self, model: str, temperature: float) -> float:
        """Return the log-probability of the likeliest token behind token 1; for `is_raw`."""
        ask = Ask(model, (1,), 1, temperature, 1.0, 0, ())
        answered = self._call("POST", "/v1/completions", {**ask.body(), "logprobs": 1})
        try:
            choice = cast("list[dict[str, dict[str, list[dict[str, float]]]]]", answered["choices"])[0]
            return max(float(value) for value in choice["logprobs"]["top_logprobs"][0].values())
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise ServerUnavailable(f"{self.url} answered without log-probabilities: {_short(answered)}") from error

    def is_raw(self, model: str) -> bool:
        """Return whether log-probabilities are those before the temperature, as a server gives them by default."""
        return abs(self.top_log_prob(model, 1.0) - self.top_log_prob(model, 2.0)) < 1e-3

    def complete(self, ask: Ask) -> Answer:
        """Return one sampled response.

        Raises:
            ServerError: See `_call`; or answers can't be read, or aren't to this prompt.
        """
        tries = 0
        while True:
            try:
                return self._read(self._call("POST", "/v1/completions", ask.body()), ask)
            except _Unreadable as error:
                tries += 1
                if tries > self._patience.retries or self._stopped.wait(self._patience.pause(tries)):
                    raise ServerUnavailable(f"{self.url}: {error}, {tries} times") from error

    def _read(self, answered: Json, ask: Ask) -> Answer:
        try:
            (choice,) = cast("list[dict[str, object]]", answered["choices"])
            prompt_ids = _integers(choice, "prompt_token_ids", self.url)
            token_ids = _integers(choice, "token_ids", self.url)
            given = cast("dict[str, list[float]]", choice["logprobs"])["token_logprobs"]
            log_probs = tuple(float(value) for value in given)
        except (KeyError, TypeError, ValueError, ServerUnavailable) as error:
            raise _Unreadable(f"a completion without tokens or log-probabilities: {_short(answered)}") from error
        if answered.get("model") != ask.model or tuple(prompt_ids) != ask.prompt_ids:
            raise _Unreadable(f"a completion of another prompt or by another model, {answered.get('model')}")
        if len(log_probs) != len(token_ids):
            raise _Unreadable(f"{len(token_ids)} tokens with {len(log_probs)} log-probabilities")
        return Answer(tuple(token_ids), log_probs)

    def _call(self, method: str, path: str, body: Json | None, *, is_patient: bool = True) -> Json:
        """Return a call's JSON, tried again as `Patience` has it; text that is no JSON comes as {"text": ...}.

        Raises:
            RequestRefused: The server says that the request is at fault.
            ServerUnavailable: No try brought an answer.
        """
        tries = 0
        while True:
            try:
                return self._call_once(method, path, body)
            except ServerUnavailable as error:
                tries += 1
                with self._lock:
                    self.failed_tries += 1
                if not is_patient or tries > self._patience.retries:
                    raise ServerUnavailable(f"{error}, after {tries} tries") from error
                pause = self._patience.pause(tries)
                logger.warning("%s; try %d of %d in %g s", error, tries, self._patience.retries, pause)
                if self._stopped.wait(pause):
                    raise

    def _call_once(self, method: str, path: str, body: Json | None) -> Json:
        place = urlsplit(self.url)
        kind = http.client.HTTPSConnection if place.scheme == "https" else http.client.HTTPConnection
        connection = kind(place.netloc, timeout=self._patience.timeout_s)
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
            raise ServerUnavailable(f"{self.url}{path}: no answer in {self._patience.timeout_s:g} s") from error
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


class _Unreadable(ValueError):
    """A completion that holds not what was asked for."""


def _is_final(text: str) -> bool:
    # vLLM reports what is wrong with an adapter as its own failure, status 500.
    return "add_lora" in text


def _parsed(text: str, where: str) -> Json:
    try:
        value = json.loads(text)
    except ValueError as error:
        if text.startswith("Success"):  # how adapters are acknowledged
            return {"text": text}
        raise ServerUnavailable(f"{where}: an answer that is no JSON: {_short(text)}") from error
    if not isinstance(value, dict):
        raise ServerUnavailable(f"{where}: an answer that is no JSON object: {_short(value)}")
    return value


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


def _integers(answered: Mapping[str, object], key: str, where: str) -> Sequence[int]:
    values = answered.get(key)
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise ServerUnavailable(f"{where}: {key} must be a list of integers, got {_short(values)}")
    return values
