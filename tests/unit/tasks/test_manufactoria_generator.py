from __future__ import annotations

import hashlib
import itertools
from collections import Counter

import pytest

from resd_lightning.tasks.manufactoria import ManufactoriaTask, parse
from resd_lightning.tasks.manufactoria.generator import Generated, generate
from resd_lightning.tasks.manufactoria.puzzles import Bound, Count, Ordered, Puzzle, Substring
from resd_lightning.tasks.manufactoria.solutions import solve


@pytest.fixture(scope="module")
def problems() -> list[Generated]:
    return [*generate(0, "train"), *generate(0, "test")]


def fingerprint(problems: list[Generated]) -> str:
    lines = [
        f"{p.id} {p.puzzle.statement} " + " ".join(f"{c['input']}:{int(c['expected_accepted'])}" for c in p.cases)
        for p in problems
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def test_families_and_splits_have_the_papers_sizes(problems):
    families = Counter(p.puzzle.family for p in problems)
    assert families == {"contains_count": 194, "contains_ordered": 340, "contains_substring": 340}
    assert len(generate(0, "train")) == 742
    assert len(generate(0, "test")) == 132


def test_problems_and_ids_are_unique(problems):
    assert len({p.puzzle for p in problems}) == 874
    assert len({p.puzzle.statement for p in problems}) == 874
    assert len({p.id for p in problems}) == 874


def test_patterns_have_one_to_six_of_four_colours(problems):
    assert {len(p.puzzle.pattern) for p in problems} == {1, 2, 3, 4, 5, 6}
    assert set("".join(p.puzzle.pattern for p in problems)) == set("RBYG")


def test_tapes_are_few_short_distinct_and_judged_both_ways(problems):
    for problem in problems:
        tapes = [case["input"] for case in problem.cases]
        accepted = sum(case["expected_accepted"] for case in problem.cases)
        assert len(set(tapes)) == len(tapes) <= 35
        assert "" in tapes
        assert problem.puzzle.pattern in tapes
        assert max(map(len, tapes)) <= 20
        assert accepted >= 3
        assert len(tapes) - accepted >= 3
        assert not any(case["check_output"] for case in problem.cases)


def test_every_problem_is_solved_by_its_program(problems):
    for problem in problems:
        program = parse(solve(problem.puzzle))
        for case in problem.cases:
            assert program.run(case["input"]).finished == case["expected_accepted"], (problem.puzzle, case)


def test_almost_right_programs_fail(problems):
    """A program for the pattern without its last colour must not pass: rejected tapes come close."""
    for problem in problems:
        puzzle = problem.puzzle
        if len(puzzle.pattern) == 1 or isinstance(puzzle, Count):
            continue
        shorter = type(puzzle)(puzzle.pattern[:-1])
        assert any(shorter.accepts(c["input"]) != c["expected_accepted"] for c in problem.cases), puzzle


def test_ordered_tapes_tell_ordered_from_neighbouring(problems):
    for problem in problems:
        if isinstance(problem.puzzle, Ordered | Substring) and len(problem.puzzle.pattern) > 1:
            other: Puzzle = (
                Substring(problem.puzzle.pattern)
                if isinstance(problem.puzzle, Ordered)
                else Ordered(problem.puzzle.pattern)
            )
            assert any(other.accepts(c["input"]) != c["expected_accepted"] for c in problem.cases), problem.puzzle


def test_count_tapes_include_off_by_one(problems):
    for problem in problems:
        if not isinstance(problem.puzzle, Count):
            continue
        for bound in problem.puzzle.bounds:
            found = {case["input"].count(bound.colour) for case in problem.cases if not case["expected_accepted"]}
            assert bound.count - 1 in found
            assert not bound.is_exact or bound.count + 1 in found


@pytest.mark.parametrize(
    ("puzzle", "accepted", "rejected"),
    [
        (Substring("RRB"), ["RRB", "RRRB", "GRRBY"], ["", "RR", "RBR", "RRGB"]),
        (Ordered("RB"), ["RB", "RGYB", "BRB"], ["", "BR", "R", "GGB"]),
        (Count((Bound("R", 2, True),)), ["RR", "RGR"], ["", "R", "RRR"]),
        (Count((Bound("R", 1, False), Bound("G", 2, False))), ["GRG", "GGGRR"], ["", "GG", "RG"]),
        (Count((Bound("R", 1, True), Bound("G", 1, False))), ["RG", "GGR"], ["RRG", "G", "R"]),
    ],
)
def test_predicate_matches_hand_picked_tapes(puzzle, accepted, rejected):
    assert all(puzzle.accepts(tape) for tape in accepted)
    assert not any(puzzle.accepts(tape) for tape in rejected)


@pytest.mark.parametrize(
    "puzzle",
    [
        Substring("RRGR"),
        Ordered("RYR"),
        Count((Bound("B", 2, True), Bound("Y", 1, False))),
        Count((Bound("B", 1, False),)),
    ],
)
def test_solution_agrees_with_the_predicate_on_all_short_tapes(puzzle):
    program = parse(solve(puzzle))
    for length in range(7):
        for colours in itertools.product("RBYG", repeat=length):
            tape = "".join(colours)
            assert program.run(tape).finished == puzzle.accepts(tape)


def test_same_seed_gives_the_same_data_on_every_machine(problems):
    assert fingerprint(problems) == "cc60127374d3ddc51572cc1cf77dbe163cbf1929dcfdcd6565fe5d054797d267"


def test_seeds_differ(problems):
    assert {p.puzzle for p in generate(1, "test")} != {p.puzzle for p in problems[742:]}


def test_difficulty_grows_with_the_pattern(problems):
    assert {p.puzzle.difficulty for p in problems} == {"easy", "medium", "hard"}
    assert all((p.puzzle.difficulty == "hard") == (len(p.puzzle.pattern) > 4) for p in problems)
    assert Substring("RB").difficulty == "easy"
    assert Count((Bound("R", 1, False), Bound("B", 1, False))).difficulty == "medium"


def test_prompts_state_problem_and_answer_format():
    full = ManufactoriaTask(test_size=1).examples("test")[0]
    short = ManufactoriaTask(test_size=1, prompt="short").examples("test")[0]
    statement = generate(0, "test")[0].puzzle.statement
    for example in (full, short):
        assert statement in example.question
        assert "fenced by ```" in example.question
        assert [message["role"] for message in example.messages] == ["user"]
    assert len(short.question) < 900 < len(full.question) < 2700
    assert full.answer == short.answer


@pytest.mark.parametrize("prompt", ["full", "short"])
def test_language_in_the_prompts_parses(prompt):
    question = ManufactoriaTask(test_size=1, prompt=prompt).examples("test")[0].question
    begin = question.rindex("START start:")
    parse(question[begin : question.index("END end", begin) + len("END end")])


def test_example_program_of_the_full_prompt_does_what_it_says():
    question = ManufactoriaTask(test_size=1).examples("test")[0].question
    program = parse(question.split("```")[1])
    for length in range(4):
        for colours in itertools.product("RBYG", repeat=length):
            tape = "".join(colours)
            assert program.run(tape).finished == (tape[:1] == "R" and tape[1:2] not in ("Y", "G"))
