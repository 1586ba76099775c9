"""What hostile programs do to the sandbox: nothing, under every kind of isolation that this machine offers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from resd_lightning.sandbox import Ended, Limits, Program, SandboxResult, command
from resd_lightning.sandbox.command import KINDS, Kind
from resd_lightning.sandbox.execute import SandboxError, execute
from resd_lightning.sandbox.isolation import CLAIMS, Isolation, probe
from resd_lightning.sandbox.system_calls import call_filter

LIMITS = Limits(wall_s=20.0, cpu_s=10, memory_mib=256)
QUICK = Limits(wall_s=0.7, cpu_s=10, memory_mib=256)
NAMESPACED = ("bubblewrap", "namespaces")


def probed(kind: Kind) -> Isolation | str:
    try:
        return probe(kind)
    except SandboxError as error:
        return str(error)


FOUND = {kind: probed(kind) for kind in KINDS}


@pytest.fixture(params=KINDS)
def isolation(request: pytest.FixtureRequest) -> Isolation:
    found = FOUND[request.param]
    if isinstance(found, str):
        pytest.skip(found)
    return found


def sandboxed() -> set[str]:
    """The processes that the sandbox started, by their command lines."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                line = (folder / "cmdline").read_text()
            except OSError:
                continue
            if "sandbox/launch.py" in line or "runner.py" in line:
                found.add(folder.name)
    return found


def contain(isolation: Isolation, program: Program | str, limits: Limits = LIMITS) -> SandboxResult:
    """Run a hostile program, then check that nothing of it is left and that the next one runs as ever."""
    before = sandboxed()
    program = Program(program) if isinstance(program, str) else program
    result = execute(program, limits, isolation.kind)
    deadline = time.monotonic() + 5
    while (left := sandboxed() - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left
    after = execute(Program("print(sum(range(5)))"), LIMITS, isolation.kind)
    assert (after.ended, after.stdout, after.stderr) == (Ended.OK, "10\n", "")
    return result


def test_something_runs_here_and_namespaces_keep_every_claim() -> None:
    working = [found for found in FOUND.values() if isinstance(found, Isolation)]
    assert any(found.kind == "rlimits" for found in working)
    for found in working:
        # Root's processes under bubblewrap stay root's, whom the limit does not bind: then namespaces are chosen.
        excused = ("limited processes",) if found.kind == "bubblewrap" and os.geteuid() == 0 else ()
        if found.kind in NAMESPACED:
            assert set(found.missing) <= set(excused)
        else:
            assert {"empty environment", "limited memory", "limited processes"} <= set(found.holds)
            assert "limited disk" in found.missing
    assert set(CLAIMS) >= {claim for found in working for claim in found.holds}


def test_a_fork_bomb_is_contained(isolation: Isolation) -> None:
    if "limited processes" in isolation.missing:
        pytest.skip(f"{isolation.kind} does not limit processes here, and is never chosen before one that does")
    bomb = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n"
    assert contain(isolation, bomb, QUICK).ended is Ended.TIMEOUT


def test_processes_that_outlive_the_program_die_with_it(isolation: Isolation) -> None:
    source = (
        "import os, time\ntry:\n    child = os.fork()\nexcept OSError:\n    child = 1\n"
        "if child == 0:\n    os.setsid()\n    time.sleep(60)\nprint('done')"
    )
    result = contain(isolation, source)
    assert result.stdout == "done\n"
    assert result.seconds < 10


def test_orphans_are_killed_by_the_process_they_come_to() -> None:
    if not Path(f"/proc/self/task/{os.getpid()}/children").exists():
        pytest.skip("this kernel doesn't list a process's children")
    waiting = (
        f"import os, sys, time\nsys.path.insert(0, {str(Path(command.__file__).parent)!r})\nimport launch\n"
        "launch.libc.prctl(launch.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)\n"
        "if os.fork() == 0:\n    for _ in range(3):\n        if os.fork() == 0: time.sleep(60)\n    os._exit(0)\n"
        "os.wait()\nlaunch.kill_orphans()\n"
        "try: os.wait()\nexcept ChildProcessError: print('none is left')"
    )
    result = subprocess.run([sys.executable, "-c", waiting], capture_output=True, text=True, timeout=50, check=True)
    assert result.stdout == "none is left\n"


def test_a_large_allocation_is_refused(isolation: Isolation) -> None:
    assert contain(isolation, "x = bytearray(10 << 30)").ended is Ended.MEMORY
    assert contain(isolation, "x = []\nwhile True: x.append(bytearray(1 << 20))").ended is Ended.MEMORY


@pytest.mark.parametrize(
    "source",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "import signal, time\nsignal.signal(signal.SIGTERM, lambda *a: None)\nwhile True: time.sleep(1)",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "import os, time\nfor fd in range(10):\n    try: os.close(fd)\n    except OSError: pass\ntime.sleep(60)",
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGSTOP)\ntime.sleep(60)",
    ],
    ids=["loop", "sleep", "ignores the signal", "catches everything", "closes its files", "stops itself"],
)
def test_an_endless_program_ends_at_the_wall_limit(isolation: Isolation, source: str) -> None:
    result = contain(isolation, source, QUICK)
    assert (result.ended, result.exit_status) == (Ended.TIMEOUT, None)
    assert QUICK.wall_s <= result.seconds < 5.0


def test_the_cpu_limit_ends_a_loop_before_the_wall_limit(isolation: Isolation) -> None:
    result = contain(isolation, "while True: pass", Limits(wall_s=60.0, cpu_s=1))
    assert result.ended is Ended.TIMEOUT
    assert result.exit_status is not None


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_endless_output_is_cut_at_its_limit(isolation: Isolation, stream: str) -> None:
    result = contain(isolation, f"import sys\nwhile True: sys.{stream}.write('x' * 1000)")
    assert result.ended is Ended.OUTPUT_LIMIT
    assert getattr(result, stream) == "x" * (LIMITS.output_kib << 10)


def test_an_endless_value_is_cut_at_its_limit(isolation: Isolation) -> None:
    program = Program("def f(): return [0.5] * 1_000_000", function="f", calls=((),))
    result = contain(isolation, program)
    assert (result.ended, result.calls) == (Ended.OUTPUT_LIMIT, ())


def test_deep_recursion_is_an_exception_or_a_crash_of_its_own_process(isolation: Isolation) -> None:
    assert contain(isolation, "def f(n): return f(n + 1)\nf(0)").ended is Ended.EXCEPTION
    unlimited = (
        "import sys\nsys.setrecursionlimit(10**9)\nclass A:\n    def __repr__(self): return repr(self)\nrepr(A())"
    )
    assert contain(isolation, unlimited).ended in (Ended.KILLED, Ended.MEMORY, Ended.EXCEPTION)


def test_the_scratch_folder_is_empty_writable_and_gone_afterwards(isolation: Isolation) -> None:
    source = "import os\nprint(os.listdir('.'))\nopen('a', 'w').write('x')\nprint(open('a').read())"
    for _ in range(2):
        assert contain(isolation, source).stdout == "[]\nx\n"


def test_a_file_cannot_grow_past_its_limit(isolation: Isolation) -> None:
    result = contain(isolation, "open('a', 'wb').write(bytes(20 << 20))")
    assert result.ended is Ended.EXCEPTION
    assert "OSError" in result.stderr


def test_folders_inside_each_other_leave_nothing_behind(
    isolation: Isolation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    source = "import os\ntry:\n    for _ in range(1010): os.mkdir('d'); os.chdir('d')\nfinally: os.chmod('.', 0)"
    assert contain(isolation, source).ended in (Ended.OK, Ended.EXCEPTION)
    assert list(tmp_path.iterdir()) == []


def test_files_outside_the_scratch_folder_are_not_written(isolation: Isolation, tmp_path: Path) -> None:
    if isolation.kind not in NAMESPACED and os.geteuid() != 0:
        pytest.skip("limits alone leave an ordinary user's files to the program")
    tmp_path.chmod(0o755)
    result = contain(isolation, f"open({str(tmp_path / 'a')!r}, 'w').write('x')")
    assert result.ended is Ended.EXCEPTION
    assert list(tmp_path.iterdir()) == []


def test_files_and_environment_are_not_read(isolation: Isolation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hidden")
    assert contain(isolation, "import os; print(dict(os.environ))").stdout == "{}\n"
    environ = "print('hidden' in open('/proc/self/environ').read())"
    password = contain(isolation, "print(open('/etc/passwd').read())")
    if isolation.kind in NAMESPACED:
        assert password.ended is Ended.EXCEPTION
        assert "FileNotFoundError" in password.stderr
        assert contain(isolation, environ).ended is Ended.EXCEPTION
        assert contain(isolation, "import os; print(os.listdir('/tmp'))").stdout == "[]\n"
    else:
        assert contain(isolation, environ).stdout in ("False\n", "")


def test_a_socket_reaches_nobody(isolation: Isolation) -> None:
    if isolation.kind not in NAMESPACED and not call_filter():
        pytest.skip("limits alone leave the network open where calls can't be filtered; the probe says so")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        result = contain(isolation, f"import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=5)")
        with pytest.raises(TimeoutError):
            server.accept()
    assert result.ended is Ended.EXCEPTION
    assert "in create_connection" in result.stderr  # no route, or a loopback of its own where nobody listens


def test_no_memory_is_had_around_the_limit(isolation: Isolation) -> None:
    if not call_filter():
        pytest.skip("calls can't be filtered on this processor")
    source = (
        "import ctypes, os\nlibc = ctypes.CDLL(None)\n"
        "print(libc.shmget(0, 1 << 20, 0o1600), libc.unshare(0x10000000), libc.mount(b't', b'/tmp', b'tmpfs', 0, 0))\n"
        "try: os.memfd_create('m')\nexcept OSError: print('refused')"
    )
    assert contain(isolation, source).stdout == "-1 -1 -1\nrefused\n"


def test_threads_and_a_childs_end_work_within_the_limit(isolation: Isolation) -> None:
    source = "import threading\nt = threading.Thread(target=print, args=('hello',))\nt.start(); t.join()"
    result = contain(isolation, source)
    if isolation.kind == "rlimits" and os.geteuid() != 0:
        assert result.ended in (Ended.OK, Ended.EXCEPTION)  # all of the user's processes count there
    else:
        assert result.stdout == "hello\n"


def test_killing_the_parent_gains_nothing(isolation: Isolation) -> None:
    source = "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nprint('alive')"
    result = contain(isolation, source)
    assert result.ended in (Ended.OK, Ended.KILLED, Ended.EXCEPTION)
    everyone = (
        "import os, signal\nfor pid in range(2, 400):\n    try: os.kill(pid, signal.SIGKILL)\n    except OSError: pass"
    )
    if "no other process in reach" in isolation.holds:
        contain(isolation, everyone)
        contain(isolation, "import os, signal\nos.kill(-1, signal.SIGKILL)")


def test_leaving_early_is_no_return(isolation: Isolation) -> None:
    program = Program(
        "import os\ndef f(t):\n    if t: os._exit(0)\n    return t", function="f", calls=((0,), (1,), (2,))
    )
    result = contain(isolation, program)
    assert [outcome.value for outcome in result.calls] == [0]


def test_catching_system_exit_and_exiting_in_a_call_are_that_calls_own(isolation: Isolation) -> None:
    source = (
        "import sys\ndef f(t):\n    try: sys.exit(0)\n    except SystemExit: pass\n    if t: sys.exit(0)\n    return 1"
    )
    result = contain(isolation, Program(source, function="f", calls=((1,), (0,))))
    assert [(outcome.value, bool(outcome.error)) for outcome in result.calls] == [(None, True), (1, False)]
    assert "SystemExit" in result.calls[0].error


def test_a_patched_interpreter_changes_only_what_the_program_says(isolation: Isolation) -> None:
    source = (
        "import builtins, json, os, sys\n"
        "json.dumps = lambda value: '{\"value\": 42}'\nbuiltins.isinstance = lambda *a: True\n"
        "sys.modules['json'] = None\nbuiltins.len = lambda x: 0\nsys.excepthook = sys.__excepthook__ = print\n"
        "def f(): return 1"
    )
    result = contain(isolation, Program(source, function="f", calls=((), ())))
    assert all(outcome.value in (1, 42) for outcome in result.calls)


def test_forged_results_are_data_and_no_more_than_was_asked(isolation: Isolation) -> None:
    source = (
        "import os\nprint('ok')\nfor _ in range(9): os.write(3, b'{\"value\": 7}\\n')\n"
        "os.write(3, b'[' * 100_000 + b'\\n')\nos._exit(0)"
    )
    result = contain(isolation, Program(source, function="f", calls=((), ())))
    assert [outcome.value for outcome in result.calls] == [7, 7]
    garbage = "import os\nos.write(3, b'[' * 100_000 + b'\\n' + b'9' * 9000 + b'\\n{}\\n\\xff\\n')\nos._exit(0)"
    result = contain(isolation, Program(garbage, function="f", calls=((),) * 4))
    assert [bool(outcome.error) for outcome in result.calls] == [True] * 4


def test_a_source_of_five_megabytes_is_run_or_refused_like_any_other(isolation: Isolation) -> None:
    assert contain(isolation, "#" * (5 << 20) + "\nprint(1)").stdout == "1\n"
    heavy = contain(isolation, "x = [" + "1," * (5 << 19) + "]\nprint(len(x))")
    assert heavy.ended in (Ended.OK, Ended.MEMORY, Ended.TIMEOUT, Ended.KILLED)
