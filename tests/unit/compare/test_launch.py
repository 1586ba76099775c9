from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import pytest

from resd_lightning.compare import launch
from resd_lightning.compare.launch import Launcher, choose_jobs, locked
from resd_lightning.compare.plan import PlannedRun
from resd_lightning.config import ConfigError
from resd_lightning.run_folder import RunFolder

PROGRAM = """#!/bin/sh
# Stands in for Python: writes down how it was called, waits for the runs named in $MEET, fails where told to.
for argument; do last=$argument; done
name=${last##*/}
echo "$OMP_NUM_THREADS $OMP_WAIT_POLICY" > "$LOGS/$name.environment"
echo "$@" >> "$LOGS/$name.arguments"
for other in $MEET; do
  for try in $(seq $TRIES); do test -e "$LOGS/$other.arguments" && break; sleep 0.1; done
  test -e "$LOGS/$other.arguments" || exit 9
done
echo "said by $name"
case $name in *bad*) exit 3;; esac
"""


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder where the stand-in for Python writes."""
    program = tmp_path / "python"
    program.write_text(PROGRAM)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(launch, "cores", lambda: 8)
    monkeypatch.setenv("LOGS", str(tmp_path))
    monkeypatch.setenv("TRIES", "200")
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def planned(tmp_path: Path, name: str, accelerator: str = "cpu") -> PlannedRun:
    folder = tmp_path / "out" / "runs" / name
    options = {"trainer": {"accelerator": accelerator}}
    return PlannedRun(name, 0, RunFolder(folder), ("--a=1", f"--run_dir={folder}"), options)


def run_all(tmp_path: Path, jobs: int, *names: str) -> dict[str, int]:
    with locked(tmp_path / "out") as lock:
        failed = Launcher(jobs, lock).run_all([planned(tmp_path, name) for name in names])
    return {run.variant: status for run, status in failed.items()}


def test_runs_go_beside_each_other_and_share_the_cores(logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEET", "a b")  # each waits until the other runs
    assert run_all(logs, 2, "a", "b") == {}
    assert (logs / "a.environment").read_text() == "4 PASSIVE\n"
    assert json.loads((logs / "out" / "runs" / "a.machine.json").read_text())["jobs"] == 2


def test_with_one_job_each_waits_for_the_one_before(logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "cores", lambda: 1)
    assert run_all(logs, 1, "a", "b") == {}
    monkeypatch.setenv("TRIES", "3")
    monkeypatch.setenv("MEET", "d")  # c waits in vain for d, which waits for c to end
    assert run_all(logs, 1, "c", "d") == {"c": 9}


def test_the_users_own_threads_win(logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    run_all(logs, 2, "a")
    assert (logs / "a.environment").read_text() == "3 PASSIVE\n"


def test_a_failed_run_does_not_lose_the_others(logs: Path) -> None:
    assert run_all(logs, 1, "a", "bad", "c") == {"bad": 3}
    for name in ("a", "bad", "c"):
        assert (logs / "out" / "runs" / f"{name}.log").read_text() == f"said by {name}\n"


def test_a_new_run_starts_and_an_unfinished_one_goes_on(logs: Path) -> None:
    run_all(logs, 1, "a")
    folder = RunFolder(logs / "out" / "runs" / "a")
    folder.last_checkpoint.parent.mkdir(parents=True)
    folder.last_checkpoint.write_bytes(b"")
    run = planned(logs, "a")
    with locked(logs / "out") as lock:
        Launcher(1, lock).run_all([run])
    first = f"-m resd_lightning fit --a=1 --run_dir={folder.path}\n"
    assert (logs / "a.arguments").read_text() == first
    assert (logs / "--ckpt_path=last.arguments").read_text() == first.replace("\n", " --ckpt_path=last\n")


def test_jobs_are_the_cores_where_all_run_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "cores", lambda: 4)
    on_cpu = [planned(tmp_path, str(number)) for number in range(6)]
    assert choose_jobs(None, on_cpu) == 4
    assert choose_jobs(None, on_cpu[:2]) == 2
    assert choose_jobs(None, []) == 1
    assert choose_jobs(None, [*on_cpu, planned(tmp_path, "x", "auto")]) == 1
    assert choose_jobs(3, [planned(tmp_path, "x", "gpu")]) == 3
    with pytest.raises(ConfigError, match="jobs must be at least 1, got 0"):
        choose_jobs(0, on_cpu)


def test_a_folder_serves_one_comparison_until_its_last_run_has_ended(tmp_path: Path) -> None:
    with locked(tmp_path) as lock:
        with (
            pytest.raises(ConfigError, match=r"--out .*: another `resd compare`, or a run that it started"),
            locked(tmp_path),
        ):
            pytest.fail("two comparisons in one folder")
        left_behind = subprocess.Popen(["sleep", "60"], pass_fds=(lock,))
    try:
        with pytest.raises(ConfigError, match="works there"), locked(tmp_path):
            pytest.fail("a comparison beside a run of another")
    finally:
        left_behind.kill()
        left_behind.wait()
    with locked(tmp_path) as lock:
        assert os.get_inheritable(lock) is False


def test_ending_the_comparison_ends_its_runs(logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEET", "nobody")
    before = signal.getsignal(signal.SIGTERM)

    def end_it() -> None:
        while not (logs / "a.arguments").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    Thread(target=end_it).start()
    with pytest.raises(SystemExit) as ended:
        run_all(logs, 1, "a", "b")
    assert ended.value.code == 128 + signal.SIGTERM
    assert not (logs / "b.arguments").exists()
    assert signal.getsignal(signal.SIGTERM) == before
    deadline = time.monotonic() + 10
    while not is_free(logs / "out"):  # the shell's last `sleep` holds the lock for a moment longer than the shell
        assert time.monotonic() < deadline, "a run has been left behind"
        time.sleep(0.05)


def is_free(out: Path) -> bool:
    try:
        with locked(out):
            return True
    except ConfigError:
        return False
