from __future__ import annotations

import logging
import pickle

import pytest

from resd_lightning.config import ConfigError
from resd_lightning.sandbox import CallOutcome, Ended, Limits, Program, Sandbox
from resd_lightning.sandbox import isolation as isolation_module
from resd_lightning.sandbox import pool as pool_module
from resd_lightning.sandbox.execute import SandboxError, execute
from resd_lightning.sandbox.isolation import CLAIMS, Isolation, find_isolation, probe

SANDBOX = Sandbox(Limits(wall_s=20.0), workers=2)


def test_a_program_reads_its_input_and_prints() -> None:
    result = SANDBOX.run(Program("print(input()[::-1])", stdin="abc\n"))
    assert (result.ended, result.exit_status, result.stdout, result.stderr) == (Ended.OK, 0, "cba\n", "")
    assert 0 < result.seconds < 20


@pytest.mark.parametrize(
    ("source", "ended", "status", "words"),
    [
        (
            "x = 1\nraise ValueError('no')",
            Ended.EXCEPTION,
            1,
            'Traceback (most recent call last):\n  File "program.py", line 2, in <module>\nValueError: no\n',
        ),
        ("def (:", Ended.EXCEPTION, 1, "SyntaxError"),
        ("a\0b", Ended.EXCEPTION, 1, "null bytes"),
        ("x = '\ud800'", Ended.EXCEPTION, 1, "surrogates not allowed"),
        ("import sys; sys.exit(3)", Ended.EXCEPTION, 3, ""),
        ("import sys; sys.exit('bye')", Ended.EXCEPTION, 1, "bye\n"),
        ("import sys; sys.exit()", Ended.OK, 0, ""),
        ("import os; os.abort()", Ended.KILLED, None, ""),
        ("", Ended.OK, 0, ""),
    ],
)
def test_every_end_has_a_name(source: str, ended: Ended, status: int | None, words: str) -> None:
    result = SANDBOX.run(Program(source))
    assert result.ended is ended
    assert status is None or result.exit_status == status
    assert words in result.stderr


def test_calls_come_back_as_data_in_order_and_one_failure_is_one_calls() -> None:
    source = (
        "from dataclasses import dataclass\n@dataclass\nclass Ball:\n    x: float\n"
        "def f(t):\n    print('noise')\n    if t == 2: raise KeyError('two')\n    if t == 3: return {1j}\n"
        "    if t == 4: return float('nan')\n    return (t, [Ball(t).x])\n"
    )
    result = SANDBOX.run(Program(source, function="f", calls=((1,), (2,), (3,), (4,), (5,))))
    assert result.calls[0] == CallOutcome((1, [1]))
    assert result.calls[1] == CallOutcome(None, "KeyError: 'two' (line 7)")
    assert "it returned data of type complex, not plain data" in result.calls[2].error
    assert result.calls[3].value != result.calls[3].value
    assert result.calls[4].value == (5, [5])
    assert result.ended is Ended.OK


@pytest.mark.parametrize(
    "value",
    [None, True, 3, -0.5, "a\n\u00e9", [], [1, [2]], (1, (2,)), {1, 2}, {"a": 1, 2: (3,)}, {(1, 2): {3}}, 10**30],
)
def test_plain_values_come_back_as_they_were(value: object) -> None:
    outcome = SANDBOX.run(Program(f"def f(): return {value!r}", function="f", calls=((),))).calls[0]
    assert (outcome.value, type(outcome.value), outcome.error) == (value, type(value), "")


def test_a_program_without_the_function_makes_no_calls() -> None:
    result = SANDBOX.run(Program("g = 1", function="f", calls=((1,),)))
    assert (result.ended, result.calls) == (Ended.EXCEPTION, ())
    assert "the program defines no function f" in result.stderr


def test_a_function_program_is_not_the_main_module() -> None:
    source = "def f(): return 1\nif __name__ == '__main__': raise SystemExit(9)"
    assert SANDBOX.run(Program(source, function="f", calls=((),))).calls == (CallOutcome(1),)
    assert SANDBOX.run(Program(source)).exit_status == 9


def test_results_come_in_the_order_of_the_programs() -> None:
    programs = [Program(f"import time; time.sleep({0.2 * (i == 0)}); print({i})") for i in range(6)]
    assert [result.stdout for result in SANDBOX.run_all(programs)] == [f"{i}\n" for i in range(6)]


def test_a_sandbox_goes_to_worker_processes_as_it_is() -> None:
    assert pickle.loads(pickle.dumps(SANDBOX)) == SANDBOX


def test_what_is_in_force_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    find_isolation.cache_clear()
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            SANDBOX.run(Program("pass"))
    said = [record.message for record in caplog.records if record.levelno >= logging.INFO]
    assert len(said) == 1
    assert said[0].startswith("sandbox: programs run under ")


def test_required_isolation_refuses_where_something_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "find_isolation", lambda: Isolation("rlimits", CLAIMS[:-1]))
    with pytest.raises(ConfigError, match="require_isolation: the best here is rlimits, without: no network"):
        Sandbox(require_isolation=True).run(Program("pass"))
    assert Sandbox().run(Program("print(1)")).stdout == "1\n"


def test_the_best_kind_that_works_is_taken(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def found(kind: str) -> Isolation:
        if kind == "bubblewrap":
            raise SandboxError("bubblewrap is not installed")
        return Isolation(kind, CLAIMS[:6] if kind == "namespaces" else CLAIMS[:3])  # type: ignore[arg-type]

    monkeypatch.setattr(isolation_module, "probe", found)
    find_isolation.cache_clear()
    assert find_isolation().kind == "namespaces"
    assert "NOT fully isolated: read-only files, no network not in force" in caplog.text
    find_isolation.cache_clear()


def test_a_machine_where_nothing_runs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(kind: str) -> Isolation:
        raise SandboxError(kind)

    monkeypatch.setattr(isolation_module, "probe", nothing)
    find_isolation.cache_clear()
    with pytest.raises(ConfigError, match="none of bubblewrap, namespaces, rlimits works"):
        find_isolation()
    find_isolation.cache_clear()


def test_a_sandbox_that_fails_says_so_and_blames_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "resd_lightning.sandbox.execute.command", lambda *_: ["/bin/sh", "-c", "echo broken >&2; exit 1"]
    )
    with pytest.raises(SandboxError, match="namespaces: broken"):
        execute(Program("pass"), Limits(), "namespaces")
    monkeypatch.setattr("resd_lightning.sandbox.execute.command", lambda *_: ["/no/such/file"])
    with pytest.raises(SandboxError, match="No such file"):
        probe("namespaces")


@pytest.mark.parametrize(("key", "value"), [("wall_s", 0.0), ("cpu_s", 0), ("memory_mib", 8), ("processes", 0)])
def test_limits_out_of_range_are_refused_by_name(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"sandbox limits.{key}"):
        Limits(**{key: value})  # type: ignore[arg-type]
