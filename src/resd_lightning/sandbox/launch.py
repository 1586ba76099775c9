"""Puts one program into namespaces of its own, or into what else there is, and waits for it.

A script of its own, never imported by the package: it runs under a bare interpreter, forks, and its child isolates
itself and becomes `runner.py`. The waiting process is what is left to kill, whatever the program does: it is in the
outer process namespace, out of the program's reach. No second interpreter is started, which halves the start-up.

Namespaces: the program is the first process of its namespace, so its end takes everything it started with it. Its file
system is a read-only tmpfs with Python's library and the shared libraries bound into it and an empty /tmp.

Under both kinds root becomes a user id nobody has, as limits on processes don't bind root; others get a user namespace
and give up what it grants. Without namespaces a library in root's own home stays readable by a capability, and the rest
of the file system with it: that kind of isolation doesn't claim otherwise.

Usage: launch.py JOB_FD CHANNEL_FD
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys

TYPE_CHECKING = False  # as in runner.py: importing typing costs as much as all the rest
if TYPE_CHECKING:
    from types import FrameType

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
PR_SET_PDEATHSIG, PR_SET_KEEPCAPS, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 8, 36, 38
CAP_DAC_READ_SEARCH = 1 << 2
CAPABILITY_VERSION_3 = 0x20080522
_GRACE_S = 1.0

libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Fork the program, wait for it within its wall limit, and exit with its status."""
    channel_fd = int(sys.argv[2])
    with open(int(sys.argv[1]), encoding="ascii") as file:
        job = json.load(file)
    path = os.path.join(os.path.dirname(__file__), "runner.py")
    with open(path, encoding="utf-8") as file:
        runner: dict[str, object] = {"__name__": "runner"}
        exec(compile(file.read(), path, "exec"), runner)
    is_root = os.geteuid() == 0
    uid = unused_uid() if is_root else os.geteuid()
    if job["kind"] == "namespaces":
        unshare(is_root)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # what outlives the program comes to this process
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGALRM})
    child = os.fork()
    if child == 0:
        os.setsid()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGALRM})
        capabilities = 0
        if job["kind"] == "namespaces":
            build_root(job["folders"], job["limits"]["file_mib"] << 20)
        else:
            os.chdir(job["scratch"])
            is_library_private = not all(os.stat(folder).st_mode & 1 for folder in parents(os.__file__))
            capabilities = CAP_DAC_READ_SEARCH if is_root and is_library_private else 0
        drop_privileges(uid, is_root, capabilities)
        runner["main"](job, channel_fd)  # type: ignore[operator]  # never returns
    os._exit(wait(child, job["limits"]["wall_s"] + _GRACE_S, uid if is_root and job["kind"] == "rlimits" else None))


def wait(child: int, limit_s: float, uid: int | None) -> int:
    """Return the child's exit status; on SIGTERM, or past the limit should nobody send one, kill it first."""

    def kill(signum: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):  # it ended by itself in this moment
            os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGTERM, kill)
    signal.signal(signal.SIGALRM, kill)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGALRM})
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if uid is not None:
        kill_all_of(uid)
    kill_orphans()
    return status if status >= 0 else 128 - status


def kill_all_of(uid: int) -> None:
    """Kill all processes of a user id at once: one by one, a fork bomb could keep ahead."""
    if (killer := os.fork()) == 0:
        try:
            os.setresuid(uid, uid, uid)
            os.kill(-1, signal.SIGKILL)  # everything this user id may signal: its own processes
        except OSError:  # none is left
            pass
        finally:
            os._exit(0)
    os.waitpid(killer, 0)


def kill_orphans() -> None:
    """Kill and reap what the program left behind: it came to this process. With a process namespace nothing is left."""
    with contextlib.suppress(ChildProcessError, FileNotFoundError):  # none is left; or the kernel doesn't list them
        while True:
            os.waitpid(-1, os.WNOHANG)
            with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
                for orphan in file.read().split():
                    os.kill(int(orphan), signal.SIGKILL)
            os.wait()


def unused_uid() -> int:
    """Return a user id that no other program has now, so that each one's processes are counted apart."""
    return 40_000 + os.getpid() % 20_000  # below 65536, which is all that a container may map


def unshare(is_root: bool) -> None:
    """Leave the namespaces of the parent; the next child is the first process of a new one."""
    uid, gid = os.geteuid(), os.getegid()
    flags = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
    checked("unshare", libc.unshare(flags if is_root else flags | CLONE_NEWUSER))
    if not is_root:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)


def build_root(folders: list[str], scratch_bytes: int) -> None:
    """Replace the file system by a read-only one that holds the folders and an empty /tmp."""
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=0755")
    os.mkdir("/tmp/old")
    checked("pivot_root", libc.pivot_root(b"/tmp", b"/tmp/old"))
    os.chdir("/")
    for folder in folders:
        if os.path.islink(f"/old{folder}"):  # /lib is one to usr/lib in most distributions
            os.symlink(os.readlink(f"/old{folder}"), folder)
        elif os.path.isdir(f"/old{folder}"):
            os.makedirs(folder, exist_ok=True)
            bind(folder, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)
    os.mkdir("/dev")
    for device in ("/dev/null", "/dev/urandom"):
        os.close(os.open(device, os.O_CREAT))
        bind(device, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID)
    checked("umount", libc.umount2(b"/old", MNT_DETACH))
    os.rmdir("/old")
    os.mkdir("/tmp")
    mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, f"size={scratch_bytes},nr_inodes=1024,mode=1777")
    mount(None, "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
    os.chdir("/tmp")


def drop_privileges(uid: int, is_root: bool, capabilities: int) -> None:
    """Give up every capability but these for good, and die with the waiting process."""
    if is_root:
        checked("prctl", libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0))
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    checked("capset", libc.capset(header, (ctypes.c_uint32 * 6)(capabilities, capabilities)))
    checked("prctl", libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    checked("prctl", libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0))  # a change of user id resets it


def parents(path: str) -> list[str]:
    """Return the folders above a path, up to the root."""
    above = os.path.dirname(path)
    return [above] if above == "/" else [above, *parents(above)]


def bind(path: str, attributes: int) -> None:
    """Show what the old file system has at the path, changed by the attributes, with all that is mounted below."""
    mount(f"/old{path}", path, None, MS_BIND | MS_REC)
    wanted = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
    checked(
        f"mount_setattr {path}",
        libc.syscall(
            SYS_MOUNT_SETATTR, AT_FDCWD, path.encode(), AT_RECURSIVE, wanted, ctypes.c_size_t(ctypes.sizeof(wanted))
        ),
    )


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """Mount the source on the target, as the system call does."""
    encoded = [None if text is None else text.encode() for text in (source, target, kind, options)]
    checked(f"mount {target}", libc.mount(*encoded[:3], ctypes.c_ulong(flags), encoded[3]))


def checked(what: str, result: int) -> None:
    """Raise `OSError` if a C function reports an error."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


if __name__ == "__main__":
    main()
