from __future__ import annotations

import pickle
import random

import pytest

from resd_lightning.tasks.manufactoria import ManufactoriaSyntaxError, parse

COLOURS = "RBYG"


def build(*body: str, entry: str = "a") -> str:
    return "\n".join(["START start:", f"    NEXT {entry}", *body, "END end"])


def error_of(program: str) -> ManufactoriaSyntaxError:
    with pytest.raises(ManufactoriaSyntaxError) as caught:
        parse(program)
    return caught.value


# Running


def test_start_straight_to_end_accepts_and_leaves_the_tape():
    assert parse(build(entry="end")).run("RB") == (True, "RB", None, 2)


def test_puller_removes_its_front_colour_and_follows_the_branch():
    program = parse(build("PULLER_RB a:", "    [R] end", "    [B] b", "PULLER_YG b:", "    [Y] end"))
    assert program.run("RB") == (True, "B", None, 3)
    assert program.run("BYG") == (True, "G", None, 4)


def test_puller_takes_empty_without_removing_on_foreign_colour_and_on_empty_tape():
    program = parse(build("PULLER_RB a:", "    [R] NONE", "    [B] NONE", "    [EMPTY] end"))
    assert program.run("YR") == (True, "YR", None, 3)
    assert program.run("") == (True, "", None, 3)


def test_missing_branch_rejects_after_pulling():
    program = parse(build("PULLER_RB a:", "    [B] end"))
    assert program.run("RG") == (False, "G", "none", 3)
    assert program.run("") == (False, "", "none", 3)


def test_painters_append_at_the_end():
    painters = [
        line
        for kind, name, after in (("RED", "a", "b"), ("BLUE", "b", "c"), ("YELLOW", "c", "d"), ("GREEN", "d", "end"))
        for line in (f"PAINTER_{kind} {name}:", f"    NEXT {after}")
    ]
    assert parse(build(*painters)).run("G") == (True, "GRBYG", None, 6)


def test_painted_colour_is_pulled_after_the_old_tape():
    program = parse(
        build(
            "PAINTER_RED a:", "    NEXT b", "PULLER_YG b:", "    [G] b", "    [EMPTY] c", "PULLER_RB c:", "    [R] end"
        )
    )
    assert program.run("GG") == (True, "", None, 7)


def test_first_of_two_branches_for_one_colour_wins():
    program = parse(build("PULLER_RB a:", "    [R] end", "    [R] NONE", "    [EMPTY] NONE", "    [EMPTY] end"))
    assert program.run("R").finished
    assert not program.run("").finished


def test_literal_end_is_an_unknown_node_at_run_time():
    program = parse(build("PULLER_YG a:", "    [G] END", "    [Y] end"))
    assert program.run("GR") == (False, "R", "unknown_node", 3)
    assert program.run("Y").finished


def test_routing_to_none_rejects():
    assert parse(build(entry="NONE")).run("B") == (False, "B", "none", 2)


@pytest.mark.parametrize(
    ("tape", "body"),
    [
        ("G", ("PAINTER_RED a:", "    NEXT a")),
        ("", ("PAINTER_RED a:", "    NEXT a")),
        ("G", ("PULLER_RB a:", "    [EMPTY] a")),
        ("", ("PULLER_RB a:", "    [EMPTY] b", "PULLER_YG b:", "    [EMPTY] a")),
        ("YY", ("PULLER_YG a:", "    [Y] b", "PAINTER_YELLOW b:", "    NEXT a")),
        ("", ("PAINTER_RED a:", "    NEXT b", "PULLER_RB b:", "    [R] a")),
    ],
)
def test_loops_are_reported_at_the_limit_without_a_tape(tape, body):
    assert parse(build(*body)).run(tape) == (False, None, "loop", 1000)


def test_start_that_leads_to_itself_loops():
    assert parse(build(entry="start")).run("") == (False, None, "loop", 1000)


def chain_of_painters(number: int) -> str:
    nodes = [f"PAINTER_RED p{i}:\n    NEXT {f'p{i + 1}' if i + 1 < number else 'end'}" for i in range(number)]
    return build(*nodes, entry="p0")


def test_run_of_exactly_the_limit_finishes_and_one_more_is_a_loop():
    assert parse(chain_of_painters(998)).run("") == (True, "R" * 998, None, 1000)
    assert parse(chain_of_painters(999)).run("") == (False, None, "loop", 1000)


def test_limit_counts_over_many_short_strides():
    puller = build("PULLER_RB a:", "    [R] a", "    [EMPTY] end")
    assert parse(puller).run("R" * 997) == (True, "", None, 1000)
    assert parse(puller).run("R" * 998).reason == "loop"


def test_program_can_run_again_after_any_outcome():
    program = parse(build("PULLER_RB a:", "    [R] end", "    [EMPTY] a"))
    outcomes = [program.run(tape) for tape in ("R", "", "B", "R", "", "B")]
    assert outcomes[:3] == outcomes[3:]
    assert [run.reason for run in outcomes[:3]] == [None, "loop", "none"]


def random_program(rng: random.Random) -> str:
    names = [f"s{i}" for i in range(rng.randint(1, 6))]
    targets = [*names, *names, "end", "NONE", "END"]
    body: list[str] = []
    for name in names:
        if rng.random() < 0.4:
            body += [
                f"PAINTER_{rng.choice(['RED', 'BLUE', 'YELLOW', 'GREEN'])} {name}:",
                f"    NEXT {rng.choice(targets)}",
            ]
            continue
        pair = rng.choice(["RB", "YG"])
        branches = rng.sample([*pair, "EMPTY"], rng.randint(0, 3))
        body += [f"PULLER_{pair} {name}:", *(f"    [{branch}] {rng.choice(targets)}" for branch in branches)]
    return build(*body, entry=rng.choice(names))


def test_fast_interpreter_agrees_with_the_trace_on_random_programs():
    rng = random.Random(3)
    reasons = set()
    for _ in range(1500):
        program = parse(random_program(rng))
        for _ in range(4):
            tape = "".join(rng.choices(COLOURS, k=rng.randint(0, 12)))
            run = program.run(tape)
            visits = list(program.trace(tape))
            reasons.add(run.reason)
            if run.reason == "loop":
                assert visits[-1] in visits[:-1] or len(visits) == 1000
                assert (run.finished, run.tape, run.steps) == (False, None, 1000)
            else:
                last = {None: "end", "none": "NONE", "unknown_node": "END"}[run.reason]
                assert visits[-1] == (last, run.tape)
                assert len(visits) == run.steps
    assert reasons == {None, "none", "loop", "unknown_node"}


# Parsing


def test_comments_blank_lines_tabs_and_fences_are_fine():
    head = "\n```manufactoria\n# note\nSTART start: # here\n\n\tNEXT a # there\n"
    assert parse(f"{head}PULLER_RB a:\n      [R] end\nEND end # bye\n```\n").run("R").finished


def test_windows_line_ends_are_fine():
    assert parse(build(entry="end").replace("\n", "\r\n")).run("").finished


def test_node_order_is_free():
    assert parse("END end\nPAINTER_RED a:\n    NEXT end\nSTART start:\n    NEXT a").run("").tape == "R"


@pytest.mark.parametrize(
    ("program", "line", "words"),
    [
        ("", 1, "START start:"),
        ("START start:\n    NEXT end", 2, "END end"),
        ("PULLER_RB a:\n    [R] a\nEND end", 3, "START start:"),
        ("START start:\n  NEXT end\nEND end", 2, "four spaces"),
        ("START start\n    NEXT end\nEND end", 1, "colon"),
        ("START begin:\n    NEXT end\nEND end", 1, "START start:"),
        ("START start:\n    NEXT end\nEND end:", 3, "END end"),
        ("START start:\n    NEXT end\nEND finish", 3, "END end"),
        ("START start:\n    NEXT end\nEND end\nEND end", 4, "line 3"),
        ("START start:\n    NEXT end\nSTART start:\n    NEXT end\nEND end", 3, "line 1"),
        ("START start:\nEND end", 1, "NEXT"),
        ("START start:\n    NEXT end\n    NEXT end\nEND end", 3, "second NEXT"),
        ("    NEXT end\nSTART start:\n    NEXT end\nEND end", 1, "no node"),
        ("START start:\n    NEXT end\nEND end\n    NEXT end", 4, "END has no routes"),
        ("START start:\n    [R] end\nEND end", 2, "`NEXT target`"),
        ("START start:\n    NEXT\nEND end", 2, "no route"),
        ("START start:\n    NEXT a b\nEND end", 2, "target"),
        (build("PAINTER_RED a:"), 3, "NEXT"),
        (build("PAINTER_RED a:", "    NEXT end", "    NEXT end"), 5, "second NEXT"),
        (build("PAINTER_RED a:", "    [R] end"), 4, "`NEXT target`"),
        (build("PAINTER_PINK a:", "    NEXT end"), 3, "no known node"),
        (build("PULLER_XX a:"), 3, "PULLER_RB"),
        (build("PULLER_RB a"), 3, "PULLER_RB a:"),
        (build("PULLER_RB a-1:"), 3, "underscores"),
        (build("PULLER_RB :"), 3, "id"),
        (build("PULLER_RB NONE:"), 3, "NONE"),
        (build("PULLER_RB a:", "PULLER_YG a:"), 4, "line 3"),
        (build("PULLER_RB end:"), 4, "line 3"),
        (build("PULLER_RB a:", "    [Y] end"), 4, "`[R] target`"),
        (build("PULLER_YG a:", "    [B] end"), 4, "`[G] target`"),
        (build("PULLER_YG a:", "    NEXT end"), 4, "`[EMPTY] target`"),
        (build("PULLER_YG a:", "    [] end"), 4, "`[EMPTY] target`"),
        (build("PULLER_YG a:", "    [NEXT] end"), 4, "`[EMPTY] target`"),
        (build("PULLER_RB a:", "    [R]"), 4, "no route"),
        (build("PULLER_RB a:", "", "# x", "    [R] ghost"), 6, "ghost"),
        (build("PULLER_RB a:", "    [R] start1"), 4, "start1"),
        (build("PULLER_RB a:", entry="ghost"), 2, "ghost"),
        ("```\nSTART start:\n NEXT end\nEND end\n```", 3, "four spaces"),
    ],
)
def test_syntax_error_names_its_line_and_the_fix(program, line, words):
    error = error_of(program)
    assert error.line == line
    assert error.source == program.split("\n")[line - 1]
    assert words in str(error)
    assert f"line {line}" in str(error)
    assert error.fix


def test_second_branch_for_a_colour_still_needs_a_valid_target_form():
    assert error_of(build("PULLER_RB a:", "    [R] end", "    [R] x y")).line == 5


def test_syntax_error_is_a_value_error_that_survives_pickling():
    error = error_of("PULLER")
    assert isinstance(error, ValueError)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.line) == (str(error), error.line)
