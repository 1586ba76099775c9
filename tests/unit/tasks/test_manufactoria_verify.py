from __future__ import annotations

import random

import pytest

from resd_lightning.records import Example, Feedback
from resd_lightning.tasks.base import Task
from resd_lightning.tasks.manufactoria import ManufactoriaTask
from resd_lightning.tasks.manufactoria.answer import extract_program
from resd_lightning.tasks.manufactoria.verdict import MAX_FEEDBACK_CHARS

ACCEPT_ALL = "START start:\n    NEXT end\nEND end"
FIRST_RED = "START start:\n    NEXT a\nPULLER_RB a:\n    [R] end\nEND end"


def case(tape: str, is_accepted: bool, output: str | None = None) -> dict[str, object]:
    return {
        "input": tape,
        "expected_output": output or "",
        "expected_accepted": is_accepted,
        "check_output": output is not None,
    }


def example(*cases: dict[str, object]) -> Example:
    return Example(id="x", messages=({"role": "user", "content": "q"},), answer=cases)


STARTS_RED = example(case("", False), case("R", True), case("RB", True), case("BR", False), case("GGR", False))


def verify(response: str, to: Example = STARTS_RED, shown: int = 3) -> Feedback:
    return ManufactoriaTask(max_shown_tapes=shown).verify(to, response)


def fenced(program: str) -> str:
    return f"```\n{program}\n```"


def test_it_is_a_task():
    assert isinstance(ManufactoriaTask(), Task)
    assert ManufactoriaTask().name == "manufactoria"


def test_right_program_gets_full_reward():
    feedback = verify(fenced(FIRST_RED))
    assert feedback == Feedback(1.0, (True,) * 5, "All 5 tests passed.")


def test_partly_right_program_gets_no_reward_but_per_test_results():
    feedback = verify(fenced(ACCEPT_ALL))
    assert feedback.reward == 0.0
    assert feedback.tests_passed == (False, True, True, False, False)
    assert feedback.text.startswith("Passed 2 of 5 tests. 3 tapes should be rejected and were accepted.")


def test_failing_tapes_are_shown_smallest_first_with_a_trace():
    text = verify(fenced(ACCEPT_ALL), shown=2).text
    assert text.index("Tape `` (empty)") < text.index("Tape `BR`")
    assert "`GGR`" not in text
    assert "Trace: start `BR` -> end `BR`" in text
    assert text.endswith("1 more failing tape is not shown.")


def test_rejection_names_node_branch_and_tape():
    text = verify(fenced(FIRST_RED.replace("[R] end", "[B] end")), example(case("R", True))).text
    assert "rejected at PULLER_RB a with the tape `R`: the [R] branch is missing, which means NONE." in text
    assert "Trace: start `R` -> a `R` -> NONE `` (empty)" in text


def test_rejection_on_empty_branch_says_why_nothing_was_pulled():
    failing = example(case("", True), case("G", True))
    text = verify(fenced(FIRST_RED), failing).text
    assert "(the tape was empty)" in text
    assert "(the front G is not pulled there)" in text


def test_loop_names_the_repeated_node():
    looping = FIRST_RED.replace("[R] end", "[EMPTY] a")
    text = verify(fenced(looping), example(case("G", True))).text
    assert "it looped: it came back to a with the same tape `G`" in text


def test_growing_loop_names_the_limit():
    growing = "START start:\n    NEXT a\nPAINTER_RED a:\n    NEXT a\nEND end"
    text = verify(fenced(growing), example(case("G", True))).text
    assert "stopped as a loop after 1000 nodes" in text
    assert len(text) < 1500


def test_loop_counts_as_rejecting():
    looping = FIRST_RED.replace("[R] end", "[R] end\n    [EMPTY] a")
    assert verify(fenced(looping), example(case("G", False), case("R", True))).reward == 1.0


def test_unknown_node_is_explained():
    text = verify(fenced(FIRST_RED.replace("[R] end", "[R] END")), example(case("R", True))).text
    assert "led to END, which is no node; the accepting node is called end" in text


def test_syntax_error_feedback_shows_line_text_and_fix():
    feedback = verify(fenced("START start:\n  NEXT end\nEND end"))
    assert feedback.tests_passed == (False,) * 5
    assert "Line 2: this route is not indented enough.\n    NEXT end\nIndent routes by four spaces" in feedback.text


@pytest.mark.parametrize("response", ["", "   ", "no idea", "<think>" + fenced(FIRST_RED), "```\n\n```"])
def test_missing_answer_is_said(response):
    feedback = verify(response)
    assert feedback.reward == 0.0
    assert feedback.tests_passed == (False,) * 5
    assert "No program was found" in feedback.text


def test_thinking_trace_is_ignored():
    assert verify(f"<think>{fenced(ACCEPT_ALL)}</think>{fenced(FIRST_RED)}").reward == 1.0
    assert verify(f"{fenced(ACCEPT_ALL)}</think>\n{FIRST_RED}").reward == 1.0
    assert "No program" in verify(f"<think>{fenced(FIRST_RED)}</think> Hm.").text


def test_last_closed_block_is_the_answer():
    assert extract_program("```\na\n```\ntext\n```manufactoria\nb\n```\nbye") == "b"
    assert extract_program("```\na\n```\ntext\n```\nb") == "a"


def test_unclosed_block_is_the_answer_if_it_is_the_only_one():
    assert extract_program("see:\n```\na\nb") == "a\nb"


def test_whole_text_is_the_answer_if_it_has_a_start():
    assert extract_program(FIRST_RED) == FIRST_RED
    assert extract_program("SO NOTHING") is None


def test_output_check_needs_the_final_tape_to_match():
    painter = "START start:\n    NEXT a\nPAINTER_RED a:\n    NEXT end\nEND end"
    assert verify(fenced(painter), example(case("B", True, "BR"))).reward == 1.0
    assert verify(fenced(painter), example(case("B", True, "[RB]+"))).reward == 1.0
    feedback = verify(fenced(painter), example(case("B", True, "RB")))
    assert feedback.reward == 0.0
    assert "accepted with the output `RB`; it reached end with the tape `BR`" in feedback.text


def test_output_check_turns_a_wrong_tape_into_a_rejection():
    assert verify(fenced(ACCEPT_ALL), example(case("B", False, "R"))).reward == 1.0


def test_oversized_programs_are_refused_with_a_text():
    padded = FIRST_RED + "\n#" + "x" * 20_000
    assert "characters and was not run; at most 20000" in verify(fenced(padded)).text
    many = FIRST_RED.replace("END end", "\n".join(f"PULLER_RB p{i}:" for i in range(1_000)) + "\nEND end")
    assert len(many) < 20_000
    assert "1002 nodes and was not run; at most 1000" in verify(fenced(many)).text


def test_foreign_answer_is_refused_by_name():
    with pytest.raises(ValueError, match="test cases must be a list"):
        ManufactoriaTask().verify(Example("x", ({"role": "user", "content": "q"},), "A,B"), "")
    with pytest.raises(ValueError, match="lacks the field check_output"):
        ManufactoriaTask().verify(
            example({"input": "", "expected_output": "", "expected_accepted": True}), fenced(ACCEPT_ALL)
        )


PIECES = [
    *(
        "```",
        "```manufactoria",
        "\n",
        "\n\n",
        "    ",
        "\t",
        "  ",
        "START start:",
        "START",
        "END end",
        "END",
        "end",
        ":",
    ),
    *("NONE", "NEXT a", "NEXT end", "[R] a", "[B] b", "[EMPTY] end", "[", "]", "PULLER_RB a:", "PULLER_YG b:", "#"),
    *(
        "PAINTER_RED a:",
        "<think>",
        "</think>",
        "{{ 7 * 7 }}",
        "{%",
        "{0}",
        "%s",
        "\\",
        "\x00",
        "\r",
        "\u2028",
        "\ud800",
    ),
    *("é", "\U0001f916", "\x0b", "\x1f", "`" * 5, "R" * 300, "a" * 3000, "(" * 400, "9" * 50),
    *(FIRST_RED, ACCEPT_ALL, f"\n```\n{FIRST_RED}\n```\n"),
]


def test_no_hostile_response_raises_or_gets_an_unbounded_text():
    rng = random.Random(11)
    task = ManufactoriaTask(max_shown_tapes=50)
    hard = example(*(case("RBYG" * n, n % 2 == 0) for n in range(12)))
    kinds = set()
    for _ in range(2000):
        response = "".join(rng.choices(PIECES, k=rng.randint(0, 25)))
        if rng.random() < 0.5:
            cut = list(FIRST_RED)
            for _ in range(rng.randint(1, 4)):
                cut[rng.randrange(len(cut))] = rng.choice(["", "\n", "R", "a", ":", "    ", "]"])
            response += f"\n```\n{''.join(cut)}\n```"
        feedback = task.verify(hard, response)
        assert isinstance(feedback, Feedback)
        assert len(feedback.tests_passed) == 12
        assert len(feedback.text) <= MAX_FEEDBACK_CHARS
        assert feedback.error == ""
        assert feedback.is_success == all(feedback.tests_passed)
        kinds.add(feedback.text[:12])
    assert len(kinds) >= 3


def test_very_large_responses_are_survived():
    for response in ("`" * 300_000, "```\n" * 100_000, "<think>" * 50_000, "START\n" * 100_000, "a" * 1_000_000):
        assert len(verify(response).text) <= MAX_FEEDBACK_CHARS


def test_long_names_and_many_failures_stay_within_the_bound():
    name = "n" * 6_000
    program = f"START start:\n    NEXT {name}\nPULLER_RB {name}:\n    [R] {name}\nEND end"
    hard = example(*(case("R" * n, True, "B" * 500) for n in range(200)))
    text = verify(fenced(program), hard, shown=200).text
    assert len(text) <= MAX_FEEDBACK_CHARS
    assert text.endswith("not shown.")
