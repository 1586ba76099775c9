"""What `resd` can do, in a page that needs none of what the commands need."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches

COMMANDS = {
    "fit": "train: composes a run from YAML files and options, and goes on with one that was stopped",
    "validate": "measure a run's student on the validation prompts",
    "test": "measure it on the test prompts",
    "predict": "write its responses to a file",
    "plan": "tell before any download whether a run fits on a card, and what would help",
    "show": "show a run in tables",
    "report": "write one HTML file about runs: curves, playbook, rollouts, costs",
    "compare": "compare configurations over seeds at one budget",
    "playbook": "show, grep, diff, stats, edit, export, import, merge and try playbooks",
    "forgetting": "compare base and student on benchmarks that training hasn't seen",
    "export": "write a run's student for other programs",
    "dequantize": "write an NF4 base as plain weights, for a vLLM server",
    "completion": "write what makes a shell complete commands and options",
}
"""Each command and what it does."""

PAGE = """usage: resd COMMAND [ARGUMENTS ...]

Reflection-Enhanced Self-Distillation: train a language model on its own responses, scored by itself under a prompt that
knows more.

{commands}

A run is composed from YAML files, later ones winning, and options, which win over files:

  resd fit --config configs/quickstart.yaml
  resd fit --config configs/quickstart.yaml --model.teacher.ema_rate 0.01 --run_dir runs/mine
  resd fit --config runs/mine/config.yaml --ckpt_path last     (goes on with a run that was stopped)

`resd COMMAND --help` has every option of a command with its default; of an option that takes a class, such as
--data.task, `resd fit --data.task.help CLASS` has the class's own. `resd fit ... --print_config` prints what a run is
composed to. Tab completes all of them once `eval "$(resd completion bash)"` has run.
"""


def overview() -> str:
    """Return the page."""
    width = max(map(len, COMMANDS))
    return PAGE.format(commands="\n".join(f"  {name:{width}}  {does}" for name, does in COMMANDS.items()))


def answer(arguments: Sequence[str]) -> int | None:
    """Answer what needs no command, and return the exit status; None where the arguments name a command.

    Args:
        arguments: The command line without the program's name. One that begins with another option than `--help` is
            left to the parser of runs.
    """
    if not arguments:
        sys.stderr.write(overview())
        return 2
    first = arguments[0]
    if first in ("-h", "--help", "help"):
        sys.stdout.write(overview())
        return 0
    if first.startswith("-") or first in COMMANDS:
        return None
    near = get_close_matches(first, COMMANDS, n=1)
    meant = f"do you mean {near[0]}?" if near else f"it is one of {', '.join(COMMANDS)}"
    sys.stderr.write(f"resd: error: there is no command {first}: {meant}\n")
    return 2
