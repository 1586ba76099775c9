"""A shell's completion of `resd`, as one script in which all commands and options stand: Tab then starts no Python."""

from __future__ import annotations

from argparse import Action, ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args, get_origin

Shell = Literal["bash", "zsh"]

SCRIPT = """# Completes resd: eval "$(resd completion {shell})"
{before}_resd() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}} command=${{COMP_WORDS[1]}} words=
  COMPREPLY=()
  if (( COMP_CWORD == 1 )); then
    COMPREPLY=($(compgen -W "{commands}" -- "$current"))
    return
  fi
  case $command in
{groups}
  esac
  case $previous in
{values}
  esac
  if [[ -z $words && $current == -* ]]; then
    case $command in
{options}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _resd resd
"""
"""Where nothing is found, `-o default` completes names of files."""

BEFORE: Mapping[Shell, str] = {"bash": "", "zsh": "autoload -U +X bashcompinit && bashcompinit\n"}


@dataclass(frozen=True)
class Command:
    """What can be completed behind a command.

    Attributes:
        options: Its options.
        values: Of an option that takes one of a few words, those.
    """

    options: tuple[str, ...]
    values: Mapping[str, tuple[str, ...]]


def command_of(parser: ArgumentParser) -> Command:
    """Return what a command's parser knows."""
    options: list[str] = []
    values: dict[str, tuple[str, ...]] = {}
    for action in parser._actions:
        own = [option for option in action.option_strings if option.startswith("--")]
        options += own
        values |= {option: words for option in own if (words := tuple(_words(action)))}
    return Command(tuple(options), values)


def script(shell: Shell, commands: Mapping[str, Command], names: Sequence[str]) -> str:
    """Return the script.

    Args:
        shell: Whose.
        commands: By name; a subcommand's is "playbook show".
        names: All commands, those without options of their own among them.
    """
    groups: dict[str, list[str]] = {}
    for name in commands:
        group, _, below = name.partition(" ")
        if below:
            groups.setdefault(group, []).append(below)
    values: dict[str, tuple[str, ...]] = {}
    for command in commands.values():
        values |= command.values
    return SCRIPT.format(
        shell=shell,
        before=BEFORE[shell],
        commands=" ".join(names),
        groups="\n".join(_group(group, below) for group, below in groups.items()),
        values="\n".join(f'    {option}) words="{" ".join(words)}" ;;' for option, words in sorted(values.items())),
        options="\n".join(f'      "{name}") words="{" ".join(c.options)}" ;;' for name, c in commands.items()),
    )


def _group(group: str, below: Sequence[str]) -> str:
    offer = f'COMPREPLY=($(compgen -W "{" ".join(below)}" -- "$current"))'
    return f'    {group}) if (( COMP_CWORD == 2 )); then {offer}; return; fi; command="{group} ${{COMP_WORDS[2]}}" ;;'


def _words(action: Action) -> Iterator[str]:
    """Yield the words that an option may take, where its type says them."""
    hint = getattr(action, "_typehint", None)
    for kind in (hint, *get_args(hint)):
        if kind is bool:
            yield from ("true", "false")
        elif get_origin(kind) is Literal:
            yield from (str(word) for word in get_args(kind))
