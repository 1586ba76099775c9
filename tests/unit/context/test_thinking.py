import pytest

from resd_lightning.thinking import strip_thinking


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("plain", "plain"),
        ("", ""),
        ("<think>a</think>\n\nsaid", "said"),
        ("the prompt opened it</think> said", "said"),
        ("<think>a<think>b</think>c</think>said", "said"),
        ("<think>a</think>draft<think>b</think>said", "said"),
        ("<think>never closes", ""),
        ("<think>a</think>said<think>cut", "said"),
        ("<think>a</think>", ""),
        ("</think><think>", ""),
        ("x < think > y", "x < think > y"),
    ],
)
def test_only_what_follows_the_last_trace_is_said(text, said):
    assert strip_thinking(text) == said


def test_stripping_twice_is_stripping_once():
    once = strip_thinking("<think>a</think> b <think> c")
    assert strip_thinking(once) == once == "b"
