"""A run's command line: `resd fit | validate | test | predict`, composed from YAML files, with one run folder."""

from __future__ import annotations

import logging
import os
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from jsonargparse import Namespace, set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerStatus

from resd_lightning import callbacks as lines
from resd_lightning.checkpoint import (
    check_compatible,
    find_checkpoint,
    goes_on_here,
    read_checkpoint,
    report_differences,
)
from resd_lightning.config import BudgetConfig, ConfigError, SamplingConfig
from resd_lightning.datamodule import RolloutDataModule
from resd_lightning.module import ResdModule
from resd_lightning.run_folder import RunFolder
from resd_lightning.terminal import Interrupted, ResdParser
from resd_lightning.training import GRADIENT_CLIP_VAL, check_arguments, derived_arguments

logger = logging.getLogger(__name__)

OPTIONS_OF_A_CALL = ("config", "overwrite", "ckpt_path", "weights_only", "verbose", "return_predictions")
"""Options that a run's config.yaml leaves out: a second call with that file must not, say, overwrite the run."""

SAMPLING_KEYS = (
    "data.rollout",
    "data.validation",
    "model.context.reflect",
    "model.context.tag",
    "model.context.curate",
)
"""Where a `SamplingConfig` stands."""

PICTURES_TIME_SHARE = 0.01
"""Of a run's time, for pictures in TensorBoard that nobody asked for."""

DESCRIPTIONS = {
    "fit": (
        "Train: sample responses, reflect on them, keep a playbook, and pull the student toward its better informed "
        "self. Files given by --config are laid over each other, later ones winning, and options win over files. All "
        "that a run leaves is in its run folder."
    ),
    "validate": "Measure a student on the validation prompts: --config RUN/config.yaml --ckpt_path last.",
    "test": "Measure a student on the test prompts: --config RUN/config.yaml --ckpt_path last.",
    "predict": "Write a student's responses to RUN/predictions.jsonl: --config RUN/config.yaml --ckpt_path last.",
}


class ResdCLI(LightningCLI):
    """LightningCLI with one run folder, the user's options before the checkpoint's, and observers that are always on.

    Args:
        args: The command line without the program's name, or a dict; None reads `sys.argv`.
        run: False builds model, data and trainer and stops, for notebooks.
    """

    folder: RunFolder
    watched_by: Sequence[Callback] = ()
    """Observers of an evaluation whose numbers are recorded with its own."""

    def __init__(self, args: list[str] | dict[str, object] | None = None, *, run: bool = True) -> None:
        set_parsing_settings(docstring_parse_attribute_docstrings=True)
        super().__init__(
            ResdModule,
            RolloutDataModule,
            save_config_callback=None,  # KeepCheckpoints and the run folder do it
            seed_everything_default=0,
            trainer_defaults={"gradient_clip_val": GRADIENT_CLIP_VAL, "inference_mode": False},
            auto_configure_optimizers=False,
            parser_class=ResdParser,
            parser_kwargs={
                "prog": "resd",
                "allow_abbrev": False,
                **{name: {"description": DESCRIPTIONS[name]} for name in self.subcommands()},
            },
            args=args,
            run=run,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run folder and the budget, and let one seed serve the run."""
        parser.usage = "%(prog)s [--config FILE ...] [--KEY VALUE ...]"  # the list of all keys would bury an error
        parser.add_argument("--run_dir", type=str | None, default=None, help="Folder of the run; null names it itself.")
        parser.add_argument("--overwrite", type=bool, default=False, help="Delete the run that --run_dir holds.")
        parser.add_class_arguments(BudgetConfig, "budget")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=_one_seed)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse without Lightning's warning that `args` are given: a notebook's program has arguments of its own."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "LightningCLI's args parameter")
            super().parse_arguments(parser, args)

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning would load the checkpoint's hyperparameters over the user's options."""

    @property
    def options(self) -> dict[str, object]:
        """The run's options as plain values, without those that belong to this one call of the command."""
        self._dump_config()
        return {key: value for key, value in self.config_dump.items() if key not in OPTIONS_OF_A_CALL}

    def before_instantiate_classes(self) -> None:
        """Settle the run folder and refuse trainer options that would break updates apart."""
        namespace = self.config[self.subcommand] if self.subcommand else self.config
        if namespace.get("run_dir") is None:
            namespace["run_dir"] = str(default_run_dir(self.options))
            del self.config_dump
        self.folder = RunFolder(Path(namespace["run_dir"]))
        trainer = cast("dict[str, object]", self.options["trainer"])
        if trainer["default_root_dir"] is not None:
            raise ConfigError("trainer.default_root_dir is the run's folder here: leave it out, and set --run_dir")
        check_arguments(trainer)
        for key in SAMPLING_KEYS:
            _check_sampling(key, namespace[key])

    def instantiate_classes(self) -> None:
        """Build model, data and trainer, and let them check each other: what fails here, the user can mend.

        Raises:
            ConfigError: Also for what constructors and files make of bad input, with the place that refused it.
        """
        try:
            super().instantiate_classes()
            if self.subcommand is not None:
                self._check_early(self.subcommand)
        except ConfigError:
            raise
        except MisconfigurationException as error:
            raise ConfigError(f"trainer: {error}") from error
        except (ValueError, OSError) as error:
            raise _as_config_error(error) from error

    def _check_early(self, stage: str) -> None:
        """Run set-up, as `trainer.fit` will again, while no folder is touched: a refusal must cost no earlier run."""
        self.trainer.strategy.connect(self.model)
        self.model.trainer = self.datamodule.trainer = self.trainer
        self.datamodule.setup(stage)
        self.model.setup(stage)

    def _run_subcommand(self, subcommand: str) -> None:
        """Run it; what Ctrl-C ends says so.

        Raises:
            Interrupted: Lightning has shut the run down and would exit.
        """
        try:
            super()._run_subcommand(subcommand)
        except SystemExit as stopped:
            if self.trainer.state.status != TrainerStatus.INTERRUPTED:
                raise
            raise Interrupted(self._how_it_stopped(subcommand)) from stopped

    def _how_it_stopped(self, subcommand: str) -> str:
        last = self.folder.last_checkpoint
        if subcommand != "fit" or not last.exists():
            return "stopped"
        done = read_checkpoint(last).updates
        where = f"after update {done}" if done else "in its first update"
        return f"the run stopped {where}; `resd fit --config {self.folder.config} --ckpt_path last` goes on with it"

    def instantiate_trainer(self, **kwargs: object) -> Trainer:
        """Build the trainer with what follows from the data, and with the observers of the subcommand."""
        is_fit = self.subcommand in (None, "fit")
        resumed_from = self._resolve_checkpoint()
        # A callback of the user's list finds the run's folder as the trainer's root.
        root = {"default_root_dir": str(self.folder.path)}
        arguments: dict[str, object] = {"enable_checkpointing": is_fit, **root, **kwargs}
        numbers = lines.RecordMetrics(self.folder)
        observers: list[Callback] = [numbers]
        if is_fit:
            arguments |= derived_arguments(self._count_updates(), self.datamodule.inner_updates)
            observers = [
                lines.WatchLoss(),
                lines.WatchPlaybook(),
                lines.CountSuccesses(self.folder),
                numbers,
                lines.StopAtBudget(self.folder, self._get(self.config_init, "budget")),
                lines.WriteTranscripts(self.folder),
                lines.WriteDiagnostics(self.folder),
                lines.TensorBoardText(),
                lines.TensorBoardLayout(self.options),
                lines.ValidateFirst(self.folder),
                lines.KeepCheckpoints(self.folder, self.options),
            ]
            if self._get(self.config_init, "trainer")["logger"] in (None, True):
                purge = None if resumed_from is None else resumed_from + 1
                arguments["logger"] = TensorBoardLogger(self.folder.path, "tensorboard", version="", purge_step=purge)
        else:
            observers = [*self.watched_by, *observers]
            arguments["logger"] = False
            if self.subcommand == "predict":
                observers = [lines.WritePredictions(self.folder)]
        configured = self._get(self.config_init, "trainer")
        if self.subcommand == "fit" and not _has_one(configured["callbacks"], lines.DrawPictures):
            observers.append(lines.DrawPictures(time_share=PICTURES_TIME_SHARE))
        has_own_bar = _has_one(configured["callbacks"], ProgressBar)  # theirs then shows the run, in its own way
        if configured["enable_progress_bar"] is not False and not has_own_bar:
            observers.append(lines.ShowProgress(None if self.subcommand == "predict" else numbers))
            arguments["enable_progress_bar"] = False  # Lightning would add bars of its own
        self.trainer_defaults = {**self.trainer_defaults, "callbacks": observers}
        return super().instantiate_trainer(**arguments)

    def _count_updates(self) -> int:
        return cast("int", self.datamodule.num_updates)

    def _resolve_checkpoint(self) -> int | None:
        """Check `--ckpt_path`, make it a path, and return the updates behind it; None where there is none."""
        if self.subcommand is None:
            return None
        ckpt_path = self.config_init[self.subcommand].get("ckpt_path")
        if ckpt_path is None:
            return None
        path = find_checkpoint(str(ckpt_path), self.folder)
        facts = read_checkpoint(path)
        if self.subcommand == "fit" and self.folder.has_run and not goes_on_here(path, facts, self.folder):
            raise ConfigError(
                f"--run_dir {self.folder.path} holds a run already, and --ckpt_path {path} is not its last checkpoint: "
                "choose another folder for what comes of it"
            )
        check_compatible(path, facts, self.model, self.datamodule)
        report_differences(facts, self.options)
        self.config_init[self.subcommand]["ckpt_path"] = str(path)
        # The file is ours and holds plain data: Lightning's default would unpickle anything.
        self.config_init[self.subcommand]["weights_only"] = True
        return facts.updates

    def before_fit(self) -> None:
        """Claim the run folder without losing a run that is in it."""
        if self.folder.has_run and self.config_init["fit"]["ckpt_path"] is None:
            if not self.config_init["fit"]["overwrite"]:
                raise ConfigError(
                    f"--run_dir {self.folder.path} holds a run already: go on with it by --ckpt_path last, choose "
                    "another folder, or give --overwrite true"
                )
            self.folder.delete_run()

    def after_fit(self) -> None:
        """Say where things are."""
        if self.trainer.is_global_zero:
            logger.info("run folder: %s", self.folder.path)
            logger.info("watch it: tensorboard --logdir %s", self.folder.path)


def default_run_dir(options: dict[str, object]) -> Path:
    """Return `runs/<method>-<task>-<model>-<seed>`."""
    model = cast("dict[str, dict[str, str]]", options["model"])
    data = cast("dict[str, dict[str, str]]", options["data"])
    task = data["task"]["class_path"].rpartition(".")[2].removesuffix("Task").lower()
    base = Path(model["policy"]["base"]).name.lower()
    return Path("runs") / f"{model['method']}-{task}-{base}-{options['seed_everything']}"


def _has_one(callbacks: list[Callback] | Callback | None, kind: type[Callback]) -> bool:
    many = callbacks if isinstance(callbacks, list) else [callbacks]
    return any(isinstance(callback, kind) for callback in many)


def _check_sampling(key: str, options: Namespace) -> None:
    """Build one purpose's sampling, only to name its key: the dataclass can't know which of several it is."""
    try:
        SamplingConfig(**options.as_dict())
    except ConfigError as error:
        raise ConfigError(str(error).replace("sampling", key, 1)) from error


def _as_config_error(error: Exception) -> ConfigError:
    """Return our own refusal that the parser wrapped into its list of alternatives, or what was raised, and where."""
    behind: BaseException | None = error
    while behind is not None:
        if isinstance(behind, ConfigError):
            return behind
        behind = behind.__cause__ or behind.__context__
    frames = traceback.extract_tb(error.__traceback__)
    place = frames[-1]
    reason = " ".join(str(error).split())
    if any(f"resd_lightning{os.sep}tasks{os.sep}" in frame.filename for frame in frames):
        reason = f"data.task: {reason}"
    return ConfigError(f"{reason} ({type(error).__name__}, {Path(place.filename).name}:{place.lineno})")


def _one_seed(seed: bool | int) -> int:
    if isinstance(seed, bool):
        raise ConfigError("--seed_everything must be a number: a run's seed names all of its samples")
    return seed
