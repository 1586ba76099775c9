"""How `resd` speaks on a terminal: its log, an option that nobody knows, and a stop by Ctrl-C."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Iterator
from difflib import get_close_matches
from typing import NoReturn, TextIO

from lightning.pytorch.cli import LightningArgumentParser

INTERRUPTED = 130
"""Exit status of a command that Ctrl-C ended, as shells have it: 128 and the number of the signal."""


NOT_FOR_USERS = ("KeyboardInterrupt", "litlogger")
"""Words in lines of Lightning's log that are left out: `resd` says itself where a stop came, and advertises nothing."""
BETWEEN_PACKAGES = (
    "`is_gradient_checkpointing` is deprecated",
    "`gradient_checkpointing_enable` is deprecated",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
)
"""Beginnings of warnings by which packages that this one stands on tell each other what will change."""


class Interrupted(Exception):
    """A run was stopped by Ctrl-C; the text says after which update, and how to go on."""


class StandardErrorHandler(logging.StreamHandler[TextIO]):
    """Writes to standard error as it is at the moment: a display puts itself there, and shows lines above its bars."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.addFilter(lambda record: not any(word in record.getMessage() for word in NOT_FOR_USERS))

    @property
    def stream(self) -> TextIO:
        """Standard error."""
        return sys.stderr

    @stream.setter
    def stream(self, stream: TextIO) -> None:
        raise AttributeError("the log of `resd` goes to standard error")


def log_to_standard_error() -> None:
    """Send what the package and Lightning log, from INFO on, to one handler; Lightning's own would draw over bars.

    What no user can act on is left out.
    """
    logging.basicConfig(format="%(message)s", level=logging.INFO, handlers=[StandardErrorHandler()])
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        log = logging.getLogger(name)
        log.handlers.clear()
        log.propagate = True
    for beginning in BETWEEN_PACKAGES:
        warnings.filterwarnings("ignore", beginning)


class ResdParser(LightningArgumentParser):
    """Refuses an option that nobody knows by its name, and says which one may have been meant."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with the parser's message, what may have been meant, and where to look."""
        super().error(message + self._meant(message), ex)

    def _meant(self, message: str) -> str:
        unknown = re.findall(r"(?<!\S)(--[\w.]+)", message) if "nrecognized arguments" in message else []
        known = long_options(self) if unknown else []
        near = {key: get_close_matches(key, known, n=2, cutoff=0.8) for key in unknown}
        return "".join(f"\n{key}: do you mean {' or '.join(keys)}?" for key, keys in near.items() if keys)


def long_options(parser: ArgumentParser) -> list[str]:
    """Return a parser's options that begin with two dashes, those of its subcommands among them."""
    own = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
    return [*own, *(option for _, other in below(parser) for option in long_options(other))]


def below(parser: ArgumentParser) -> Iterator[tuple[str, ArgumentParser]]:
    """Yield a parser's subcommands, with their names."""
    for action in parser._actions:
        if isinstance(action, _SubParsersAction):
            yield from (action._name_parser_map or {}).items()
