"""Measures the Manufactoria interpreter against a straightforward one: an object per node, a step at a time.

    python benchmarks/manufactoria.py --out benchmarks/results/manufactoria.json

Programs are a right one for each of some test puzzles; the same with one branch changed, as models get them wrong; and
random ones that paint. Each runs on its puzzle's test tapes, of up to 20 colours. Both interpreters start from parsed
text, run the same programs on the same tapes in one process, and must agree on every result. The straightforward one is
measured with either rule by which a loop can end: to remember every node and tape, or only to stop after 1,000 nodes.

`first` includes what an interpreter prepares for a program, as when a response is judged; `again` has that behind it.
Times are the process's own CPU time, as other work may share the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import time
from collections import deque
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from resd_lightning.compare.launch import cpu
from resd_lightning.tasks.manufactoria import parse
from resd_lightning.tasks.manufactoria.generator import generate
from resd_lightning.tasks.manufactoria.machine import EMPTY, NEXT, NODE_LIMIT, Node, Program, Run
from resd_lightning.tasks.manufactoria.solutions import solve

Work = list[tuple[Program, list[str]]]
PAINTERS = ("PAINTER_RED", "PAINTER_BLUE", "PAINTER_YELLOW", "PAINTER_GREEN")


class Start:
    """Goes on to the next node."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.next: Station

    def step(self, tape: deque[str]) -> Station:
        """Return where to go from here."""
        return self.next


class Painter(Start):
    """Appends its colour, then goes on to the next node."""

    def __init__(self, id: str, colour: str) -> None:
        super().__init__(id)
        self.colour = colour

    def step(self, tape: deque[str]) -> Station:
        """Paint, and return where to go from here."""
        tape.append(self.colour)
        return self.next


class Puller:
    """Takes a colour of its own from the front, and goes where that leads."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.targets: dict[str, Station] = {}
        self.empty: Station

    def step(self, tape: deque[str]) -> Station:
        """Pull if the front is of a colour to pull, and return where to go from here."""
        if tape and tape[0] in self.targets:
            return self.targets[tape.popleft()]
        return self.empty


class Halt:
    """The end of a run."""

    def __init__(self, reason: str | None) -> None:
        self.reason = reason


Station = Start | Puller | Halt


def build(program: Program) -> Station:
    """Return the start of a program, made into an object per node."""
    halts: dict[str, Station] = {"end": Halt(None), "NONE": Halt("none")}
    stations: dict[str, Start | Puller] = {node.id: _station(node) for node in program.nodes.values()}
    unknown = Halt("unknown_node")

    def leading(node: Node, branch: str) -> Station:
        target = node.target(branch)
        return stations.get(target) or halts.get(target, unknown)

    for node in program.nodes.values():
        station = stations[node.id]
        if isinstance(station, Puller):
            station.targets = {colour: leading(node, colour) for colour in node.pulls}
            station.empty = leading(node, EMPTY)
        else:
            station.next = leading(node, NEXT)
    return stations["start"]


def _station(node: Node) -> Start | Puller:
    if node.pulls:
        return Puller(node.id)
    return Painter(node.id, node.paints) if node.paints else Start(node.id)


def run_to_the_limit(station: Station, symbols: str) -> Run:
    """Step until the program halts or has visited `NODE_LIMIT` nodes."""
    tape = deque(symbols)
    for steps in range(1, NODE_LIMIT + 1):
        if isinstance(station, Halt):
            return Run(station.reason is None, "".join(tape), station.reason, steps)
        station = station.step(tape)
    return Run(False, None, "loop", NODE_LIMIT)


def run_to_a_repeat(station: Station, symbols: str) -> Run:
    """Likewise, or until it comes back to a node with the same tape."""
    tape = deque(symbols)
    seen: set[tuple[str, str]] = set()
    for steps in range(1, NODE_LIMIT + 1):
        if isinstance(station, Halt):
            return Run(station.reason is None, "".join(tape), station.reason, steps)
        state = (station.id, "".join(tape))
        if state in seen:
            break
        seen.add(state)
        station = station.step(tape)
    return Run(False, None, "loop", NODE_LIMIT)


def programs(kind: str, number: int, rng: random.Random) -> Work:
    """Return programs of a kind ("right", "one branch changed" or "random"), each with its tapes."""
    work = []
    for problem in generate(0, "test")[:number]:
        text = solve(problem.puzzle)
        if kind == "one branch changed":
            text = change_branch(text, rng)
        elif kind == "random":
            text = random_program(rng)
        work.append((parse(text), [case["input"] for case in problem.cases]))
    return work


def change_branch(text: str, rng: random.Random) -> str:
    """Let one branch lead elsewhere, or drop it."""
    lines = text.split("\n")
    at = rng.choice([number for number, line in enumerate(lines) if "[" in line])
    names = [line.split()[1].rstrip(":") for line in lines if line.startswith("PULLER")]
    branch = lines[at].split()[0]
    lines[at] = f"    {branch} {rng.choice(names)}" if rng.random() < 0.75 else "# dropped"
    return "\n".join(lines)


def random_program(rng: random.Random) -> str:
    """Return a program of 4 to 12 nodes, about half of them painters."""
    names = [f"s{number}" for number in range(rng.randint(4, 12))]
    targets = [*names, *names, "end", "NONE"]
    lines = ["START start:", f"    NEXT {names[0]}"]
    for name in names:
        if rng.random() < 0.5:
            lines += [f"{rng.choice(PAINTERS)} {name}:", f"    NEXT {rng.choice(targets)}"]
        else:
            pair = rng.choice(("RB", "YG"))
            lines += [f"PULLER_{pair} {name}:", *(f"    [{branch}] {rng.choice(targets)}" for branch in (*pair, EMPTY))]
    return "\n".join([*lines, "END end"])


def per_second(work: Work, prepare: Callable[[Program], Callable[[str], Run]], repeats: int) -> dict[str, float]:
    """Return programs x tapes a second, the best of the repeats: with preparing, and with that done."""
    number = sum(len(tapes) for _, tapes in work)
    best = {"first": 0.0, "again": 0.0}
    for _ in range(repeats):
        prepared = []
        began = time.process_time()
        for program, tapes in work:
            run = prepare(program)
            for tape in tapes:
                run(tape)
            prepared.append((run, tapes))
        best["first"] = max(best["first"], number / (time.process_time() - began))
        began = time.process_time()
        for run, tapes in prepared:
            for tape in tapes:
                run(tape)
        best["again"] = max(best["again"], number / (time.process_time() - began))
    return best


def straightforward(rule: Callable[[Station, str], Run]) -> Callable[[Program], Callable[[str], Run]]:
    """Return what prepares a program for the straightforward interpreter."""

    def prepare(program: Program) -> Callable[[str], Run]:
        start = build(program)
        return lambda tape: rule(start, tape)

    return prepare


def ours(program: Program) -> Callable[[str], Run]:
    """Prepare a program for the package's interpreter, with nothing of earlier runs."""
    return Program(program.nodes).run


INTERPRETERS = {
    "ours": ours,
    "objects, to a repeat": straightforward(run_to_a_repeat),
    "objects, to the limit": straightforward(run_to_the_limit),
}


def measure(name: str, work: Work, repeats: int) -> dict[str, object]:
    """Check that all interpreters agree, and return their speeds."""
    loops = 0
    for program, tapes in work:
        runs = [prepare(program) for prepare in INTERPRETERS.values()]
        for tape in tapes:
            results = {run(tape) for run in runs}
            assert len(results) == 1, (program.nodes, tape, results)
            loops += results.pop().reason == "loop"
    speeds = {label: per_second(work, prepare, repeats) for label, prepare in INTERPRETERS.items()}
    ratios = {
        label: {when: round(speeds["ours"][when] / speed[when], 1) for when in speed}
        for label, speed in speeds.items()
        if label != "ours"
    }
    return {
        "programs": name,
        "number": len(work),
        "programs_x_tapes": sum(len(tapes) for _, tapes in work),
        "loops": loops,
        "per_second": {label: {when: round(value) for when, value in speed.items()} for label, speed in speeds.items()},
        "ours_is_faster_by": ratios,
    }


def split_by_outcome(work: Work) -> tuple[Work, Work]:
    """Return what halts, and what loops."""
    halting = [(program, [tape for tape in tapes if program.run(tape).reason != "loop"]) for program, tapes in work]
    looping = [(program, [tape for tape in tapes if program.run(tape).reason == "loop"]) for program, tapes in work]
    return halting, [(program, tapes) for program, tapes in looping if tapes]


def main() -> None:
    """Measure every kind of program and all together, print a table, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--puzzles", type=int, default=44, help="programs of each kind, at most 132")
    parser.add_argument("--repeats", type=int, default=3, help="times that everything is measured; the best counts")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    options = parser.parse_args()
    rng = random.Random("manufactoria benchmark")
    work = {kind: programs(kind, options.puzzles, rng) for kind in ("right", "one branch changed", "random")}
    everything = [pair for pairs in work.values() for pair in pairs]
    work["all, what halts"], work["all, what loops"] = split_by_outcome(everything)
    work["all"] = everything
    machine = {"cpu": cpu(), "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}
    versions = {"python": platform.python_version(), "resd-lightning": version("resd-lightning")}
    results = {"machine": machine, "versions": versions, "repeats": options.repeats}
    print(", ".join(f"{name} {value}" for name, value in results.items()))
    rows = []
    for name, pairs in work.items():
        row = measure(name, pairs, options.repeats)
        rows.append(row)
        print(json.dumps(row))
    if options.out is not None:
        options.out.write_text(json.dumps({**results, "runs": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
