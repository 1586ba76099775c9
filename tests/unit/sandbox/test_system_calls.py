from __future__ import annotations

import errno

import pytest

from resd_lightning.sandbox.system_calls import REFUSED, Instruction, call_filter

ALLOWED, REFUSED_BY, UNKNOWN = 0x7FFF0000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
OWN_PID = 77
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def verdict(instructions: list[Instruction], architecture: int, number: int, argument: int = 0) -> int:
    """Run the filter as the kernel would, for one call."""
    data = {0: number, 4: architecture, 16: argument}
    at = accumulator = 0
    while True:
        code, if_true, if_false, operand = instructions[at]
        value = OWN_PID if operand is None else operand
        at += 1
        if code == 0x06:
            return value
        if code == 0x20:
            accumulator = data[value]
        else:
            holds = {0x15: accumulator == value, 0x45: bool(accumulator & value), 0x35: accumulator >= value}[code]
            at += if_true if holds else if_false


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_the_filter_refuses_what_it_names_and_allows_the_rest(machine: str) -> None:
    instructions, architecture = call_filter(machine), ARCHITECTURES[machine]
    column = list(ARCHITECTURES).index(machine)
    clone, kill, tgkill, prlimit, prctl = ((56, 62, 234, 302, 157), (220, 129, 131, 261, 167))[column]
    refused = {numbers[column] for numbers in REFUSED.values()}
    assert len(refused) == len(REFUSED)
    for number in range(460):
        expected = REFUSED_BY if number in refused else UNKNOWN if number == 435 else ALLOWED
        if number not in (clone, kill, tgkill, prlimit, prctl):
            assert verdict(instructions, architecture, number) == expected, number
    for number in (kill, tgkill):
        assert verdict(instructions, architecture, number, OWN_PID) == ALLOWED
        for other in (0, 1, 0xFFFFFFFF, OWN_PID + 1):
            assert verdict(instructions, architecture, number, other) == REFUSED_BY
    assert verdict(instructions, architecture, prlimit, 0) == ALLOWED
    assert verdict(instructions, architecture, prlimit, 1) == REFUSED_BY
    assert verdict(instructions, architecture, prctl, 1) == REFUSED_BY  # the signal at the parent's death
    assert verdict(instructions, architecture, prctl, 15) == ALLOWED  # a thread's name
    assert verdict(instructions, architecture, clone, 17) == ALLOWED  # SIGCHLD: a plain fork
    assert verdict(instructions, architecture, clone, 0x003D0F00) == ALLOWED  # a thread
    for namespace in (0x20000, 0x10000000, 0x20000000, 0x40000000):
        assert verdict(instructions, architecture, clone, namespace | 17) == REFUSED_BY


def test_calls_of_another_architecture_are_refused() -> None:
    assert verdict(call_filter("x86_64"), 0x40000003, 1) == REFUSED_BY
    assert verdict(call_filter("x86_64"), 0xC000003E, 0x40000001) == REFUSED_BY


def test_an_unknown_processor_has_no_filter() -> None:
    assert call_filter("riscv64") == []
