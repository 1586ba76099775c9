"""The commands explain themselves, refuse by name, and complete."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
import warnings
from argparse import SUPPRESS, ArgumentParser
from pathlib import Path

import pytest

from resd_lightning.cli import TOOLS, ResdCLI, completion, main, parsers
from resd_lightning.compare.study import read_study
from resd_lightning.overview import COMMANDS, answer
from resd_lightning.terminal import StandardErrorHandler, log_to_standard_error

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
QUICKSTART = f"--config={CONFIGS / 'quickstart.yaml'}"


@pytest.fixture(scope="module")
def every_parser() -> dict[str, ArgumentParser]:
    return parsers()


def test_every_option_of_every_command_has_a_sentence_and_every_command_a_description(
    every_parser: dict[str, ArgumentParser],
) -> None:
    assert set(COMMANDS) == {name for name in every_parser if " " not in name}
    assert {"playbook show", "playbook merge", "playbook try"} <= set(every_parser)
    assert "fits on a card" in str(every_parser["plan"].description)
    for name, parser in every_parser.items():
        assert len((parser.description or "").split()) > 4, name
        for action in parser._actions:
            if action.dest == "subcommand" or action.help is SUPPRESS:
                continue  # its commands have descriptions
            shown = parser._get_formatter()._expand_help(action) if action.help else ""
            assert len(shown.split("(type")[0].split()) > 1, f"resd {name}: {action.option_strings or action.dest}"
        for group in parser._action_groups:
            assert group.title, name


def test_options_are_given_whole_and_a_near_one_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        ResdCLI(["fit", QUICKSTART, "--model.teacher.ema_rat=0.1"])
    assert refused.value.code == 2
    said = capsys.readouterr().err
    assert "unrecognized arguments: --model.teacher.ema_rat" in said
    assert "--model.teacher.ema_rat: do you mean --model.teacher.ema_rate" in said.splitlines()[-1]
    for command in (["show", "--conf=x", "run"], ["playbook", "diff", "--conf=x", "a", "b"], ["plan", "--car=a100"]):
        with pytest.raises(SystemExit):
            main(command)
        assert "unrecognized arguments" in capsys.readouterr().err, command


def test_options_of_a_study_are_given_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "configs: [{0}]\noptions: {{model.teacher.ema_rat: 0.1}}\nvariants: {{a: {{}}, b: {{}}}}\nseeds: [0]\n"
    study = tmp_path / "study.yaml"
    study.write_text(text.format(CONFIGS / "quickstart.yaml") + "budget: {prompts: 32}\n")
    read_study(study)
    assert main(["compare", str(study), "--out", str(tmp_path / "out")]) == 2
    assert "--model.teacher.ema_rat" in capsys.readouterr().err


def test_the_page_of_commands_names_each_and_an_unknown_one_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(TOOLS) | {"plan"} | set(ResdCLI.subcommands()) == set(COMMANDS)
    assert answer(["--help"]) == 0
    page = capsys.readouterr().out
    for name, does in COMMANDS.items():
        assert f"  {name} " in page
        assert does in page
    assert answer([]) == 2
    assert answer(["fit", "--help"]) is None
    assert answer(["--config", "x.yaml", "fit"]) is None
    capsys.readouterr()
    assert answer(["frobnicate"]) == 2
    assert "there is no command frobnicate: it is one of fit, " in capsys.readouterr().err
    assert answer(["raport"]) == 2
    assert "do you mean report?" in capsys.readouterr().err


def test_the_page_of_commands_needs_no_library() -> None:
    code = "import sys; from resd_lightning.overview import overview; overview(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        completion("bash")
    path = tmp_path_factory.mktemp("completion") / "resd.bash"
    path.write_text(out.getvalue())
    return path


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["fit", "--model.teacher.ema_"], {"--model.teacher.ema_rate"}),
        (["fit", "--model.teacher.kind", ""], {"ema", "live", "initial", "trust_region"}),
        (["fit", "--overwrite", "t"], {"true"}),
        (["pl"], {"plan", "playbook"}),
        (["playbook", "m"], {"merge"}),
        (["playbook", "try", "--ckpt"], {"--ckpt_path"}),
        (["plan", "--card_"], {"--card_gib"}),
        (["fit", "--config", "quickst"], set()),
    ],
)
def test_bash_completes(typed: list[str], offered: set[str], bash_script: Path) -> None:
    words = " ".join(f"'{word}'" for word in ["resd", *typed])
    code = f'source {bash_script}; COMP_WORDS=({words}); COMP_CWORD={len(typed)}; _resd; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", code], check=True, capture_output=True, text=True)
    assert set(done.stdout.split()) == offered


def test_the_log_follows_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    log = logging.Logger("display")
    log.addHandler(StandardErrorHandler())
    display = io.StringIO()
    monkeypatch.setattr(sys, "stderr", display)
    log.warning("above the bars")
    assert display.getvalue() == "above the bars\n"


def test_what_no_user_can_act_on_is_left_out_of_the_log(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = logging.Logger("of a run")
    log.addHandler(StandardErrorHandler())
    log.info("try installing [litlogger](https://pypi.org/project/litlogger/)")
    log.info("Detected KeyboardInterrupt, attempting graceful shutdown ...")
    log.info("loading micro-lm")
    assert capsys.readouterr().err == "loading micro-lm\n"
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
        log_to_standard_error()
        warnings.warn("`is_gradient_checkpointing` is deprecated and will be removed", FutureWarning, stacklevel=1)
        warnings.warn("the disk is full", UserWarning, stacklevel=1)
    assert [str(warning.message) for warning in seen] == ["the disk is full"]
