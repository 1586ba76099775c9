"""A local HTTP server that answers as vLLM did when it was recorded (vllm_0_32.json), and fails as it is told."""

from __future__ import annotations

import copy
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal, cast

RECORDED: Mapping[str, dict[str, object]] = json.loads(Path(__file__).with_name("vllm_0_32.json").read_text())

Body = dict[str, object]
Trouble = Literal["status 503", "status 500", "disconnect", "silence", "half an answer", "no object", "other tokens"]


@dataclass
class Replay:
    """What the server is, and what it has been asked.

    Attributes:
        model: Name and folder of the base.
        max_model_len: Longest prompt and response together.
        respond: Returns tokens and log-probs for a completion's request.
        tokenize: Returns a text's tokens.
        on_load: Name of the recorded answer to an adapter; None judges it by its files, as the server does.
        is_processed: Log-probs are those at the temperature.
        troubles: What the next completions meet instead of an answer, in order.
        fails_at: What single completions meet, by how many were asked before.
        dies_after: Completions answered before it says nothing but 503; None for never.
        adapters: Names of loaded adapters with their folders.
        asked: Bodies of all completions, troubled ones included.
        loaded: Names in the order in which adapters were loaded.
        unloaded: Names in the order in which they were unloaded.
    """

    model: str = "/models/smollm2"
    max_model_len: int = 4096
    respond: Callable[[Body], tuple[Sequence[int], Sequence[float]]] | None = None
    tokenize: Callable[[str], Sequence[int]] = lambda text: list(text.encode())
    on_load: str | None = None
    is_processed: bool = False
    troubles: list[Trouble] = field(default_factory=list)
    fails_at: dict[int, Trouble] = field(default_factory=dict)
    dies_after: int | None = None
    adapters: dict[str, str] = field(default_factory=dict)
    asked: list[Body] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    unloaded: list[str] = field(default_factory=list)
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def forget(self) -> None:
        """Be as a server that has been started anew."""
        self.adapters.clear()

    def answer(self, path: str, body: Body) -> tuple[int, str]:
        if path == "/v1/models":
            return self._models()
        if path == "/tokenize":
            return 200, json.dumps({**_body("tokenize"), "tokens": self.tokenize(str(body["prompt"]))})
        if path == "/v1/load_lora_adapter":
            return self._load(str(body["lora_name"]), str(body["lora_path"]))
        if path == "/v1/unload_lora_adapter":
            self.unloaded.append(str(body["lora_name"]))
            if self.adapters.pop(str(body["lora_name"]), None) is None:
                return recorded("no_such_adapter_to_unload")
            return recorded("unloaded")
        if path == "/v1/completions":
            return self._complete(body)
        return recorded("no_route")

    def _models(self) -> tuple[int, str]:
        listed = copy.deepcopy(_body("models"))
        base, adapter = cast("list[Body]", listed["data"])
        base |= {"id": self.model, "root": self.model, "max_model_len": self.max_model_len}
        listed["data"] = [base, *({**adapter, "id": n, "root": p} for n, p in self.adapters.items())]
        return 200, json.dumps(listed)

    def _load(self, name: str, folder: str) -> tuple[int, str]:
        if self.on_load is not None:
            return recorded(self.on_load)
        if not (Path(folder) / "adapter_config.json").is_file():
            return recorded("no_such_folder")
        if not (Path(folder) / "adapter_model.safetensors").is_file():
            return recorded("no_weights")
        self.adapters[name] = folder
        self.loaded.append(name)
        return recorded("loaded")

    def _complete(self, body: Body) -> tuple[int, str]:
        if body["model"] not in (self.model, *self.adapters):
            return recorded("no_such_model")
        if _asks_for_mode(body):
            what = "processed" if self.is_processed else "one"
            return recorded(f"{what}_token_at_{body['temperature']:.0f}")
        answered = copy.deepcopy(_body("completion"))
        choice = cast("list[Body]", answered["choices"])[0]
        if self.respond is not None:
            tokens, log_probs = self.respond(body)
            choice["token_ids"] = list(tokens)
            cast("Body", choice["logprobs"])["token_logprobs"] = list(log_probs)
        choice["prompt_token_ids"] = body["prompt"]
        answered["model"] = body["model"]
        return 200, json.dumps(answered)


def recorded(name: str) -> tuple[int, str]:
    """Return status and text of a recorded answer."""
    answer = RECORDED[name]
    text = answer["text"] if "text" in answer else json.dumps(answer["body"])
    return cast("int", answer["status"]), cast("str", text)


def _body(name: str) -> Body:
    return cast("Body", RECORDED[name]["body"])


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    replay: Replay

    def handle_error(self, request: object, client_address: object) -> None: ...  # clients that hang up


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, body: Body) -> None:
        status, text = self.server.replay.answer(self.path, body)
        trouble = self._trouble(body) if self.path == "/v1/completions" else None
        if trouble is None:
            self._send(status, text)
        elif trouble.startswith("status"):
            self._send(int(trouble.split()[1]), '{"error": {"message": "EngineCore encountered an issue."}}')
        elif trouble == "disconnect":
            # Reset, as a killed process leaves its connections, and not closed in order.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
        elif trouble == "silence":
            time.sleep(1.0)
            self.close_connection = True
        elif trouble == "half an answer":
            self._send(200, text[:100])
        elif trouble == "no object":
            self._send(200, "[]")
        else:  # to a prompt that nobody sent
            answered = json.loads(text)
            answered["choices"][0]["prompt_token_ids"] = [1]
            self._send(200, json.dumps(answered))

    def _trouble(self, body: Body) -> str | None:
        if _asks_for_mode(body):
            return None
        replay = self.server.replay
        with replay.lock:
            replay.asked.append(body)
            if replay.dies_after is not None:
                replay.dies_after -= 1
                if replay.dies_after < 0:
                    return "status 503"
            if replay.troubles:
                return replay.troubles.pop(0)
            return replay.fails_at.get(len(replay.asked) - 1)

    def _send(self, status: int, text: str) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None: ...


def _asks_for_mode(body: Body) -> bool:
    """Whether a completion only asks whether log-probs are raw."""
    return body["max_tokens"] == 1 and body["logprobs"] == 1


@contextmanager
def replaying(replay: Replay) -> Iterator[Replay]:
    """Serve on a free port while the context lasts, and put the address into `replay.url`."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.replay = replay
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    replay.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield replay
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
