"""Command lines that compose and check all that a run would, and start none: for `resd plan` and for studies."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

from jinja2 import TemplateError
from lightning.pytorch.cli import LightningArgumentParser

from resd_lightning.compare.plan import Composition
from resd_lightning.config import ConfigError, require
from resd_lightning.datamodule import RolloutDataModule
from resd_lightning.module import ResdModule
from resd_lightning.plan.command import (
    CARDS,
    LEFT_TO_THE_MACHINE,
    Composed,
    choose_card,
    count_devices,
    plan_run,
    strategy_asked,
)
from resd_lightning.plan.prompts import measure_prompts
from resd_lightning.run_cli import ResdCLI
from resd_lightning.training import check_strategy


class _ComposingCLI(ResdCLI):
    """Builds and checks all that a run would, and stops before anything is written."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"fit": ResdCLI.subcommands()["fit"]}  # a parser for each of the others would take most of the time

    def _run_subcommand(self, subcommand: str) -> None: ...


class PlanningCLI(_ComposingCLI):
    """Composes and checks as much as can be without a tokenizer, examples or the trainer's device."""

    def __init__(self, args: list[str]) -> None:
        self.notes: list[str] = []
        super().__init__(args)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the card."""
        super().add_arguments_to_parser(parser)
        parser.description = (
            "Tell whether a run fits on a card, what holds memory in each phase, the largest values that fit, and what "
            "would help. Options are those of `resd fit`; no weight is downloaded and no GPU is needed."
        )
        parser.usage = "resd plan [--config FILE ...] [--KEY VALUE ...] (--card NAME | --card_gib GIB)"
        parser.add_argument("--card_gib", type=float | None, default=None, help="The card's memory, in GiB.")
        parser.add_argument("--card", type=str | None, default=None, help=f"A card by name: {', '.join(CARDS)}.")
        parser.add_argument(
            "--reserve_gib", type=float, default=2.0, help="Memory that is left out of account, in GiB."
        )
        parser.add_argument("--json", type=str | None, default=None, help="File for the plan as JSON.")

    def before_instantiate_classes(self) -> None:
        """Check the options, then put the trainer on this machine's CPU: the one that is asked for may be elsewhere."""
        super().before_instantiate_classes()
        trainer = self.config["fit"]["trainer"]
        self.card = choose_card(*(self.config["fit"][key] for key in ("card", "card_gib", "reserve_gib")))
        self.precision, self.accelerator = str(trainer["precision"]), str(trainer["accelerator"])
        require(int(trainer["num_nodes"]) >= 1, "trainer.num_nodes", "at least 1", trainer["num_nodes"])
        self.ranks = count_devices(trainer["devices"]) * int(trainer["num_nodes"])
        self.strategy = strategy_asked(trainer["strategy"])
        if trainer["devices"] in LEFT_TO_THE_MACHINE:
            self.notes.append(f"trainer.devices {trainer['devices']} is planned as one device")
        for key, value in {"accelerator": "cpu", "devices": 1, "strategy": "auto", "num_nodes": 1}.items():
            trainer[key] = value

    def _count_updates(self) -> int:
        return cast("int", self.datamodule.inner_updates)  # the true number needs the task's examples

    def _check_early(self, stage: str) -> None:
        self.trainer.strategy.connect(self.model)
        self.model.trainer = self.datamodule.trainer = self.trainer
        self.model.check_settings()
        model = self.model
        check_strategy(self.strategy, self.ranks, self.precision, model.policy_config, model.optimizer_config)
        self.datamodule.check_settings(stage, self._count_updates(), self.strategy)

    def composed(self) -> Composed:
        """Return what was composed, with the lengths of its training prompts where they are at hand."""
        module, data = cast("ResdModule", self.model), cast("RolloutDataModule", self.datamodule)
        prompts = None
        try:
            examples = data.task.examples("train")
            prompts = measure_prompts(module.tokenizer, examples, data.max_prompt_tokens) if examples else None
        except (ValueError, OSError, ImportError, TemplateError) as error:
            reason = " ".join(str(error).split())
            self.notes.append(f"training prompts aren't measured, and `resd fit` will refuse to start: {reason}")
        return Composed(module, data, self.precision, self.ranks, self.strategy, self.accelerator, prompts, self.notes)


C = TypeVar("C", bound=_ComposingCLI)


def _build(kind: Callable[[list[str]], C], arguments: Sequence[str]) -> C:
    """Return a command line that has built what `arguments` ask for, without a word on seeds and devices."""
    logging.disable(logging.INFO)
    try:
        return kind(["fit", *arguments])
    finally:
        logging.disable(logging.NOTSET)


def compose(arguments: Sequence[str]) -> Composition:
    """Return what `resd fit` would run with.

    Raises:
        ConfigError: `resd fit` would refuse the arguments.
    """
    try:
        cli = _build(_ComposingCLI, arguments)
    except SystemExit as error:  # the parser has said why
        raise ConfigError("`resd fit` refuses its options, for the reason above") from error
    data = cast("RolloutDataModule", cli.datamodule)
    return Composition(cli.options, data.batch_size, len(data.stream.examples) // data.batch_size * data.batch_size)


def plan(arguments: Sequence[str]) -> int:
    """Tell whether and how a run fits on a card, from its configuration alone, and return 0 if it does, else 1.

    Args:
        arguments: Those of `resd fit`, and the card's.
    """
    cli = _build(PlanningCLI, arguments)
    return plan_run(cli.composed(), cli.card, cast("str | None", cli.config["fit"]["json"]))
