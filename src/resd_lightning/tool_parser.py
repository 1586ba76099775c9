"""The command line of a tool, from the signature and docstring of its function."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, getdoc, signature
from typing import Literal

import docstring_parser
from jsonargparse import ArgumentParser


class ToolParser(ArgumentParser):
    """Reads a function's required list of texts from several words: `merge A B C`, not `merge [A,B,C]`."""

    def add_function_arguments(
        self,
        function: Callable[..., object],
        nested_key: str | None = None,
        as_group: bool = True,
        as_positional: bool = False,
        skip: set[str | int] | None = None,
        fail_untyped: bool | Literal["all"] = True,
        sub_configs: bool = False,
    ) -> list[str]:
        """Add the function's parameters, required lists of texts as the last positionals."""
        several = {
            name
            for name, parameter in signature(function).parameters.items()
            if parameter.annotation == "list[str]" and parameter.default is Parameter.empty
        }
        rest = {*(skip or ()), *several}
        added = super().add_function_arguments(
            function, nested_key, as_group, as_positional, rest, fail_untyped, sub_configs
        )
        documented = docstring_parser.parse(getdoc(function) or "").params
        sentences = {parameter.arg_name: parameter.description for parameter in documented}
        for name in several:
            self.add_argument(name, nargs="+", type=str, help=sentences[name])
        return [*added, *several]
