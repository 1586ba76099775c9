"""A filter of system calls (seccomp) for programs: no sockets, no signals to others, no ways around the limits.

It is a second wall behind namespaces, which keeps a program from making some of its own and filling memory there, and
most of what there is where a container allows none. Like every limit it only ever tightens; where the kernel or the
processor has no place for it, the probe finds out what is missing.

Source: seccomp(2), and the numbers in asm/unistd_64.h (x86-64) and asm-generic/unistd.h (aarch64).
"""

from __future__ import annotations

import errno
import platform
from typing import Final

Instruction = tuple[int, int, int, int | None]
"""Code, jump if true, jump if false, operand of one BPF instruction; operand None is the program's own process id."""

REFUSED: Final = {
    "socket": (41, 198),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "setpriority": (141, 140),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "mount_setattr": (442, 442),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "memfd_create": (319, 279),
    "io_uring_setup": (425, 425),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
}
"""Numbers on x86-64 and aarch64 of calls that no program needs: they reach others, or take memory uncounted."""

_CLONE: Final = (56, 220)
_CLONE3: Final = 435
_KILL: Final = (62, 129)
_TGKILL: Final = (234, 131)
_PRLIMIT64: Final = (302, 261)
_PRCTL: Final = (157, 167)
_PR_SET_PDEATHSIG: Final = 1
_NEW_NAMESPACES: Final = 0x7E020080
_ARCHITECTURES: Final = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_X32_BIT: Final = 0x40000000

_LOAD, _IF_EQUAL, _IF_ANY_BIT, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16
_ALLOW: Final = (_RETURN, 0, 0, 0x7FFF0000)
_REFUSE: Final = (_RETURN, 0, 0, 0x50000 | errno.EPERM)
_UNKNOWN: Final = (_RETURN, 0, 0, 0x50000 | errno.ENOSYS)


def call_filter(machine: str | None = None) -> list[Instruction]:
    """Return the filter's instructions for a kind of processor, this one's by default; empty where it isn't known."""
    if (machine or platform.machine()) not in _ARCHITECTURES:
        return []
    column, architecture = _ARCHITECTURES[machine or platform.machine()]
    instructions: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_IF_EQUAL, 1, 0, architecture),
        _REFUSE,  # 32-bit calls have other numbers
        (_LOAD, 0, 0, _NUMBER_AT),
        (_IF_AT_LEAST, 0, 1, _X32_BIT),
        _REFUSE,
    ]
    for numbers in REFUSED.values():
        instructions += [(_IF_EQUAL, 0, 1, numbers[column]), _REFUSE]
    # Its flags lie in memory, where no filter looks; the C library then takes clone, for processes and threads.
    instructions += [(_IF_EQUAL, 0, 1, _CLONE3), _UNKNOWN]
    for numbers, allowed in (
        (_CLONE, (_IF_ANY_BIT, 0, 1, _NEW_NAMESPACES)),
        (_KILL, (_IF_EQUAL, 1, 0, None)),
        (_TGKILL, (_IF_EQUAL, 1, 0, None)),
        (_PRLIMIT64, (_IF_EQUAL, 1, 0, 0)),
        (_PRCTL, (_IF_EQUAL, 0, 1, _PR_SET_PDEATHSIG)),  # the program dies with the process that waits for it
    ):
        instructions += [
            (_IF_EQUAL, 0, 4, numbers[column]),
            (_LOAD, 0, 0, _FIRST_ARGUMENT_AT),
            allowed,
            _REFUSE,
            _ALLOW,
        ]
    return [*instructions, _ALLOW]
