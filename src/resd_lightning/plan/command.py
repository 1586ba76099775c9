"""`resd plan` from a composed configuration to its tables."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import cast

from jsonargparse import Namespace
from lightning.pytorch.strategies import ModelParallelStrategy, SingleDeviceStrategy, Strategy, StrategyRegistry
from rich.console import Console

from resd_lightning.algorithm import algorithm_callbacks
from resd_lightning.callbacks import CuratePlaybook, ReflectOnFailures, TagSuccesses
from resd_lightning.config import ConfigError, require
from resd_lightning.datamodule import RolloutDataModule
from resd_lightning.module import ResdModule
from resd_lightning.plan.fitting import Card, largest_values, suggestions
from resd_lightning.plan.memory import GIB, phases
from resd_lightning.plan.prompts import PromptLengths
from resd_lightning.plan.report import Plan, show_plan
from resd_lightning.plan.run import Call, Device, Run
from resd_lightning.plan.seconds import Speed, least_seconds
from resd_lightning.plan.shape import read_shape
from resd_lightning.plan.weights import base_bytes, trained_weights
from resd_lightning.plan.work import Work, against_sdpo, work
from resd_lightning.rollout.hf import HFEngine
from resd_lightning.run_folder import replace_text

CARDS = {
    "l4": (22.5, Speed(121, 300)),
    "rtx3090": (24.0, Speed(71, 936)),
    "rtx4090": (24.0, Speed(165, 1008)),
    "a100-40gb": (40.0, Speed(312, 1555)),
    "l40s": (45.0, Speed(362, 864)),
    "h100": (79.6, Speed(989, 3350)),
    "a100-80gb": (80.0, Speed(312, 2039)),
    "h200": (140.4, Speed(989, 4800)),
}
"""Memory in GiB as nvidia-smi shows it, and NVIDIA's data sheets; of A100, H100 and H200 the SXM modules."""


@dataclass(frozen=True, eq=False)
class Composed:
    """A run that was composed and checked, of which no weight has been read.

    Attributes:
        module: The module.
        data: The datamodule.
        precision: The trainer's precision as it was asked for.
        ranks: How many devices it asks for, on all nodes.
        strategy: How they share the work.
        accelerator: The trainer's accelerator as it was asked for.
        prompts: Lengths of training prompts; None where they aren't at hand.
        notes: What isn't at hand or isn't counted.
    """

    module: ResdModule
    data: RolloutDataModule
    precision: str
    ranks: int
    strategy: Strategy
    accelerator: str
    prompts: PromptLengths | None
    notes: list[str]


LEFT_TO_THE_MACHINE = ("auto", -1, "-1")
"""Values of `trainer.devices` that take what there is."""


def count_devices(asked: int | str | list[int]) -> int:
    """Return how many devices of a node `trainer.devices` asks for; one where it leaves that to the machine.

    Raises:
        ConfigError: It is no number of devices, and no list of them.
    """
    if asked in LEFT_TO_THE_MACHINE:
        return 1
    if isinstance(asked, str):
        named = [device.strip() for device in asked.split(",") if device.strip()]
        if not named or not all(device.isdecimal() for device in named):
            raise ConfigError(f"trainer.devices {asked!r} is no number of devices: give one, or their numbers")
        asked = [int(device) for device in named] if "," in asked else int(asked)
    count = len(asked) if isinstance(asked, list) else asked
    require(count >= 1, "trainer.devices", "at least one", asked)
    return count


def strategy_asked(asked: str | Namespace) -> Strategy:
    """Return `trainer.strategy` as Lightning would make it, with no device behind it.

    Raises:
        ConfigError: Lightning knows no such strategy.
    """
    if isinstance(asked, Namespace):
        module, _, name = asked.class_path.rpartition(".")
        return cast("Strategy", getattr(import_module(module), name)(**vars(asked.init_args)))
    if asked == "auto":
        return SingleDeviceStrategy()
    if asked not in StrategyRegistry:
        raise ConfigError(f"trainer.strategy {asked!r} is none that Lightning knows: use ddp, or ModelParallelStrategy")
    return cast("Strategy", StrategyRegistry.get(asked))


def choose_card(name: str | None, gib: float | None, reserve_gib: float) -> Card:
    """Return the card that was named or measured out.

    Raises:
        ConfigError: Neither or both are given, the name is unknown, or the reserve leaves nothing.
    """
    if (name is None) == (gib is None):
        raise ConfigError("give one of --card_gib, the card's memory in GiB, and --card, its name")
    if name is not None and name not in CARDS:
        raise ConfigError(f"--card {name} is none of {sorted(CARDS)}: give its memory by --card_gib")
    speed = None
    if name is not None:
        gib, speed = CARDS[name]
    assert gib is not None  # one of the two is
    require(gib > 0, "--card_gib", "above 0", gib)
    require(0 <= reserve_gib < gib, "--reserve_gib", f"at least 0 and less than the card's {gib:g}", reserve_gib)
    return Card(name or "the card", gib, reserve_gib, speed)


def run_of(composed: Composed) -> Run:
    """Return the numbers of a composed run that set its memory and work."""
    module, data = composed.module, composed.data
    context, engine = module.context_config, data.engine
    device: Device = "cpu" if composed.accelerator == "cpu" else "cuda"
    first = data.batch_size * data.phases[0].rollouts_per_prompt
    asked = {
        # Where every rollout fails nobody is asked for tags, which take the place of as many reflections.
        ReflectOnFailures: Call("reflect", context.max_prompt_tokens, context.reflect.max_new_tokens, first),
        TagSuccesses: Call("tag", context.max_prompt_tokens, context.tag.max_new_tokens, 0),
        CuratePlaybook: Call("curate", context.max_prompt_tokens, context.curate.max_new_tokens, data.batch_size),
    }
    lines = algorithm_callbacks(module.trainer)
    return Run(
        shape=read_shape(module.policy_config),
        policy=module.policy_config,
        teacher=module.teacher_config.kind,
        distillation=module.distillation_config,
        objectives=tuple(dict.fromkeys(phase.objective for phase in data.phases)),
        optimizer=module.optimizer_config.kind,
        is_mixed=composed.precision in ("bf16-mixed", "16-mixed"),
        device=device,
        micro_batch=data.fewest_per_micro_batch,
        prompt=data.max_prompt_tokens,
        response=data.rollout.max_new_tokens,
        teacher_prompt=module.teacher_prompt_config.max_tokens,
        engine_batch=engine.batch_size if isinstance(engine, HFEngine) else None,
        batch=data.batch_size,
        rollouts=data.batch_size * max(phase.rollouts_per_prompt for phase in data.phases),
        context=tuple(call for kind, call in asked.items() if any(isinstance(line, kind) for line in lines)),
        validation=data.validation.max_new_tokens,
        validations=data.validation_batch_size * data.validation_samples,
        ranks=composed.ranks,
        is_sharded=isinstance(composed.strategy, ModelParallelStrategy),
    )


def _seconds(run: Run, phase: Work, card: Card) -> float | None:
    if card.speed is None or run.device == "cpu" or run.compute_bytes > 2:
        return None
    return least_seconds(run, phase, card.speed)


def plan_run(composed: Composed, card: Card, json_file: str | None) -> int:
    """Plan a composed run, print the plan, write it where asked, and return 0 if it fits, else 1.

    Raises:
        ConfigError: The base's layers aren't of a kind that the plan knows.
    """
    run = run_of(composed)
    notes = list(composed.notes)
    if run.engine_batch is None:
        notes.append(f"what data.engine {type(composed.data.engine).__name__} holds isn't counted")
    if run.is_sharded and run.is_nf4:
        whole = base_bytes(run) / GIB
        notes.append(f"while it loads, each card packs the whole base, {whole:.1f} GiB, before it keeps its part")
    if run.policy.offload_activations:
        notes.append("activations that model.policy.offload_activations takes off the card are counted")
    first = composed.data.phases[0]
    updates = replace(run, objectives=run.objectives[:1], rollouts=run.batch * first.rollouts_per_prompt)
    distillation = "distillation, fused" if run.is_fused else "distillation, plain"
    plan = Plan(
        base=run.policy.base,
        base_weights=run.shape.base_weights,
        trained_weights=trained_weights(run),
        loss=", then ".join("GRPO" if each == "grpo" else distillation for each in run.objectives),
        card=card,
        phases=phases(run),
        largest=largest_values(run, card),
        suggestions=suggestions(run, card),
        work=[(phase, _seconds(updates, phase, card)) for phase in work(updates)],
        ranks=run.ranks,
        against_sdpo=against_sdpo(updates),
        prompts=composed.prompts,
        prompt_limit=run.prompt,
        notes=notes,
    )
    show_plan(plan, Console())
    if json_file is not None:
        replace_text(Path(json_file), json.dumps(plan.as_json(), indent=1) + "\n")
    return 0 if plan.fits else 1
