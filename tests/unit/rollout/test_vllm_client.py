from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from resd_lightning.rollout.vllm_client import (
    Ask,
    Patience,
    RequestRefused,
    ServedModel,
    ServerUnavailable,
    VllmServer,
)
from vllm_replay import RECORDED, Replay, Trouble, recorded, replaying

PROMPT = (1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173)
ASK = Ask("/models/smollm2", PROMPT, 6, 0.7, 0.95, 2**62 + 1, (2,))
HASTY = Patience(timeout_s=0.4, retries=2, pause_s=0.01)


@pytest.fixture
def replay() -> Iterator[Replay]:
    with replaying(Replay()) as served:
        yield served


def test_a_recorded_completion_is_read_token_by_token(replay: Replay) -> None:
    answer = VllmServer(replay.url, HASTY).complete(ASK)
    assert answer.token_ids == (338, 2925, 3097, 1789, 30, 1206)
    assert answer.log_probs[:2] == (-1.2197309732437134, -3.088366985321045)
    assert len(answer.log_probs) == 6


def test_a_request_is_token_ids_a_seed_and_nothing_that_a_base_recommends(replay: Replay) -> None:
    schema = {"type": "object"}
    VllmServer(f"{replay.url}/v1/", HASTY).complete(Ask(*vars(ASK).values()))
    VllmServer(replay.url, HASTY).complete(Ask("/models/smollm2", PROMPT, 6, 0.0, 1.0, 5, (2, 7), schema))
    plain, guided = replay.asked
    assert plain["prompt"] == list(PROMPT)
    assert (plain["seed"], plain["temperature"], plain["top_p"], plain["max_tokens"]) == (2**62 + 1, 0.7, 0.95, 6)
    neutral = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    assert neutral.items() <= plain.items()
    assert "structured_outputs" not in plain
    assert (guided["structured_outputs"], guided["stop_token_ids"]) == ({"json": schema}, [2, 7])


def test_models_are_bases_and_not_the_adapters_beside_them(replay: Replay) -> None:
    replay.adapters["a"] = "/adapters/2"
    assert VllmServer(replay.url, HASTY).models() == [ServedModel("/models/smollm2", "/models/smollm2", 4096)]


@pytest.mark.parametrize("trouble", get_args(Trouble))
def test_a_server_that_fails_twice_is_asked_a_third_time(replay: Replay, trouble: Trouble) -> None:
    replay.troubles = [trouble, trouble]
    server = VllmServer(replay.url, HASTY)
    assert len(server.complete(ASK).token_ids) == 6
    assert len(replay.asked) == 3
    assert server.failed_tries == 2


@pytest.mark.parametrize("trouble", get_args(Trouble))
def test_a_server_that_fails_every_time_is_given_up_with_its_name(replay: Replay, trouble: Trouble) -> None:
    replay.troubles = [trouble] * 9
    with pytest.raises(ServerUnavailable, match=rf"{replay.url}.*after 3 tries"):
        VllmServer(replay.url, HASTY).complete(ASK)
    assert len(replay.asked) == 3


def test_nobody_at_the_address_is_unavailable() -> None:
    with replaying(Replay()) as gone:
        url = gone.url
    with pytest.raises(ServerUnavailable, match="refused, after 3 tries"):
        VllmServer(url, HASTY).complete(ASK)


def test_a_request_at_fault_is_refused_at_once_in_the_servers_words(
    replay: Replay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "answer", lambda path, body: recorded("too_long"))
    with pytest.raises(RequestRefused, match="max_tokens=5000 cannot be greater") as caught:
        VllmServer(replay.url, HASTY).complete(ASK)
    assert (caught.value.status, len(replay.asked)) == (400, 1)


def test_an_adapter_that_cannot_be_loaded_is_refused_at_once_although_vllm_calls_it_its_own_error(
    replay: Replay, tmp_path: Path
) -> None:
    replay.on_load = "rank_too_large"
    server = VllmServer(replay.url, HASTY)
    with pytest.raises(RequestRefused, match="LoRA rank 64 is greater than max_lora_rank 16"):
        server.load_adapter("a", tmp_path)
    assert server.failed_tries == 0


def test_stopping_ends_a_call_under_way_and_the_pause_after_it(replay: Replay) -> None:
    replay.troubles = ["silence"] * 9
    server = VllmServer(replay.url, Patience(timeout_s=30, retries=5, pause_s=30))
    raised: list[Exception] = []

    def ask() -> None:
        try:
            server.complete(ASK)
        except ServerUnavailable as error:
            raised.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while not replay.asked:
        time.sleep(0.01)
    server.stop()
    thread.join(timeout=5)
    assert not thread.is_alive()
    assert len(raised) == 1


def test_pauses_double_up_to_half_a_minute() -> None:
    patience = Patience(timeout_s=1, retries=10, pause_s=1)
    assert [patience.pause(tries) for tries in (1, 2, 3, 5, 6, 10)] == [1, 2, 4, 16, 30, 30]
    assert sum(patience.pause(tries) for tries in range(1, 11)) == 181


def test_log_probs_are_raw_where_the_temperature_does_not_change_them(replay: Replay) -> None:
    assert VllmServer(replay.url, HASTY).is_raw("/models/smollm2")
    replay.is_processed = True
    assert not VllmServer(replay.url, HASTY).is_raw("/models/smollm2")


def test_the_key_goes_where_the_server_looks_for_it(replay: Replay, monkeypatch: pytest.MonkeyPatch) -> None:
    from http.client import HTTPConnection

    seen: list[object] = []
    plain = HTTPConnection.request

    def request(self: HTTPConnection, *args: object, **kwargs: object) -> None:
        seen.append(kwargs["headers"])
        plain(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(HTTPConnection, "request", request)
    monkeypatch.setenv("VLLM_API_KEY", "word")
    VllmServer(replay.url, HASTY).models()
    assert seen[0]["Authorization"] == "Bearer word"  # type: ignore[index]


def test_recordings_name_their_source() -> None:
    assert "vLLM 0.32.0" in str(RECORDED["source"])
