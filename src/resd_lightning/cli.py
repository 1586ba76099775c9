"""Every command of `resd`: those that run, and the tools beside them."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from jsonargparse import auto_cli, auto_parser
from lightning.pytorch.cli import ArgsType, LightningArgumentParser
from rich.console import Console

from resd_lightning.compare.command import compare_study
from resd_lightning.completion import Shell, command_of, script
from resd_lightning.config import ConfigError
from resd_lightning.dequantize import dequantize
from resd_lightning.export import export
from resd_lightning.forgetting import forgetting
from resd_lightning.module import ResdModule
from resd_lightning.overview import COMMANDS as DOES
from resd_lightning.overview import answer
from resd_lightning.plan_cli import PlanningCLI, compose, plan
from resd_lightning.playbook_command.attempt import TryPlaybook, attempt_table
from resd_lightning.playbook_command.commands import COMMANDS
from resd_lightning.playbook_command.source import find_playbook
from resd_lightning.report.command import report
from resd_lightning.rollout.engine import EngineError
from resd_lightning.run_cli import ResdCLI
from resd_lightning.show import show
from resd_lightning.terminal import INTERRUPTED, Interrupted, below, log_to_standard_error
from resd_lightning.tool_parser import ToolParser

__all__ = ["ResdCLI", "main"]


def compare(
    study: str,
    out: str | None = None,
    jobs: int | None = None,
    seeds: list[int] | None = None,
    variants: list[str] | None = None,
) -> int:
    """Compare configurations over seeds at one budget: run what is unfinished, then write table, curves and numbers.

    Called again, it goes on with runs that were stopped, leaves finished ones alone, and refuses runs that were made
    with other options than the study asks for now. docs/comparing.md describes the file and each number.

    Args:
        study: YAML file that names variants, seeds and the budget.
        out: Folder of runs and results; null is runs/<name of the file>.
        jobs: Runs at a time; null is one per core where all run on the CPU, and else one.
        seeds: Run these of the study's seeds only, for example [0,1]; the table has all runs that are finished.
        variants: Run these of the study's variants only, for example [resd,sdpo].
    """
    file = Path(study)
    folder = Path("runs") / file.stem if out is None else Path(out)
    return compare_study(file, folder, compose, jobs=jobs, seeds=seeds, variants=variants)


class _ValidatingCLI(ResdCLI):
    """Validates alone: a parser for each of the other subcommands would take most of the time."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"validate": ResdCLI.subcommands()["validate"]}


def try_playbook(arguments: Sequence[str]) -> int:
    """Measure what a playbook in the prompt is worth on the validation prompts, and show it.

    Args:
        arguments: A playbook's source, then the options of `resd validate`; without `--ckpt_path` the base answers.

    Raises:
        ConfigError: There is no such playbook, or it is empty.
    """
    if not arguments or arguments[0].startswith("-"):
        raise ConfigError("resd playbook try needs a run or a file, and then the options of `resd validate`")
    source, *options = arguments
    attempt = TryPlaybook(find_playbook(source))
    cli_class = type("_TryingCLI", (_ValidatingCLI,), {"watched_by": (attempt,)})
    cli = cli_class(["validate", *options])
    module = cast("ResdModule", cli.model)
    is_base = cli.config_init["validate"]["ckpt_path"] is None
    who = "the base" if is_base else f"the student of update {module.updates_done}"
    Console().print(attempt_table(attempt.effect(), f"{source} in the prompt of {who}"))
    return 0


class _ParserMade(Exception):
    """Carries a parser out of a command line that is not to go on."""

    def __init__(self, parser: ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


def _parser_of(kind: type[ResdCLI]) -> ArgumentParser:
    """Return the parser that a command line would parse by, and don't go on."""

    def stop(self: ResdCLI, parser: LightningArgumentParser, args: ArgsType) -> None:
        raise _ParserMade(parser)

    try:
        type("_ParserOf", (kind,), {"parse_arguments": stop})([])
    except _ParserMade as made:
        return made.parser
    raise RuntimeError(f"{kind.__name__} parsed nothing")


def parsers() -> dict[str, ArgumentParser]:
    """Return the parser of every command by name, those of subcommands as "playbook show"."""
    found = dict(below(_parser_of(ResdCLI)))
    found["playbook try"] = found["validate"]
    found["plan"] = dict(below(_parser_of(PlanningCLI)))["fit"]
    for name, tool in TOOLS.items():
        components = tool if callable(tool) else {name: tool}
        parser = auto_parser(
            components, prog=f"resd {name}", as_positional=True, parser_class=ToolParser, allow_abbrev=False
        )
        if callable(tool):
            found[name] = parser
        else:
            found[name] = dict(below(parser))[name]
            found |= {f"{name} {sub}": parser for sub, parser in below(found[name])}
    return found


def completion(shell: Shell) -> None:
    """Write a script that makes a shell complete commands, options and their words.

    In bash, `eval "$(resd completion bash)"` in ~/.bashrc does it, or faster, `resd completion bash > FILE` once and
    `source FILE` there.

    Args:
        shell: The shell.
    """
    commands = {name: command_of(parser) for name, parser in parsers().items()}
    sys.stdout.write(script(shell, commands, list(DOES)))


Tool = Callable[..., object] | dict[str, "str | Callable[..., object]"]

TOOLS: dict[str, Tool] = {
    "compare": compare,
    "completion": completion,
    "dequantize": dequantize,
    "export": export,
    "forgetting": forgetting,
    "playbook": COMMANDS,
    "report": report,
    "show": show,
}
"""Commands that need no trainer: functions whose arguments are the options, and whose number is the exit status."""


def _run_tool(name: str, arguments: list[str]) -> object:
    tool = TOOLS[name]
    if callable(tool):
        return auto_cli(
            tool, args=arguments, prog=f"resd {name}", as_positional=True, parser_class=ToolParser, allow_abbrev=False
        )
    return auto_cli(
        {name: tool},  # type: ignore[dict-item]  # its type has no place for _help
        args=[name, *arguments],
        prog="resd",
        as_positional=True,
        parser_class=ToolParser,
        allow_abbrev=False,
    )


def main(args: Sequence[str] | None = None) -> int:
    """Run `resd` and return its exit status; what the user can mend is said in one line, without a traceback."""
    arguments = list(sys.argv[1:] if args is None else args)
    log_to_standard_error()
    try:
        status = answer(arguments)
        if status is not None:
            return status
        if arguments and arguments[0] == "plan":
            return plan(arguments[1:])
        if arguments[:2] == ["playbook", "try"]:
            return try_playbook(arguments[2:])
        if arguments and arguments[0] in TOOLS:
            result = _run_tool(arguments[0], arguments[1:])
            return result if isinstance(result, int) else 0
        sys.argv[1:] = arguments  # the program itself stays: Lightning starts further processes by it
        ResdCLI()
    except ConfigError as error:
        sys.stderr.write(f"resd: error: {error}\n")
        return 2
    except (Interrupted, KeyboardInterrupt) as stop:
        sys.stderr.write(f"resd: {stop or 'stopped'}\n")
        return INTERRUPTED
    except EngineError as error:
        sys.stderr.write(
            f"resd: stopped: {error}\nThe updates before this one are kept: --ckpt_path last goes on with it.\n"
        )
        return 1
    return 0
