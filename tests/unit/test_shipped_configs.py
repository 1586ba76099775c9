from __future__ import annotations

from itertools import combinations, product
from pathlib import Path
from typing import cast

import pytest
import yaml

from resd_lightning.cli import ResdCLI

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FOLDERS = ("model", "task", "method", "trainer")
SHIPPED = {folder: sorted(f"{folder}/{path.name}" for path in (CONFIGS / folder).glob("*.yaml")) for folder in FOLDERS}
BASIC = {folder: names[0] for folder, names in SHIPPED.items()}
COMPOSITIONS = sorted({tuple((BASIC | {folder: name}).values()) for folder in FOLDERS for name in SHIPPED[folder]})
"""Every shipped file in some composition."""
SMOLLM2 = (
    "model/smollm2_nf4.yaml",
    "task/manufactoria.yaml",
    "method/resd.yaml",
    "trainer/cpu.yaml",
    "smollm2_manufactoria.yaml",
)
VLLM = (*SMOLLM2, "engine/vllm.yaml")
MICRO_WORLD = ("model/micro.yaml", "task/tape_machines.yaml", "method/resd.yaml", "trainer/cpu.yaml")
OVER_THE_QUICKSTART = [
    ("quickstart.yaml", name)
    for name in (
        "quickstart_ci.yaml",
        "diagnostics.yaml",
        "continuous.yaml",
        "model/micro_nf4.yaml",
        "model/micro_full.yaml",
        *SHIPPED["method"],
    )
]

Options = dict[str, dict[str, dict[str, object]]]


class ParsingCLI(ResdCLI):
    """Parses and checks types and ranges, and builds nothing."""

    def before_instantiate_classes(self) -> None: ...

    def instantiate_classes(self) -> None: ...


def parse(monkeypatch: pytest.MonkeyPatch, *names: str) -> Options:
    monkeypatch.setattr("sys.argv", ["resd"])
    args = [part for name in names for part in ("--config", str(CONFIGS / name))]
    return cast("Options", ParsingCLI(args, run=False).options)


def keys(tree: object, prefix: str = "") -> set[str]:
    if not isinstance(tree, dict):
        return {prefix}
    return {key for name, below in tree.items() for key in keys(below, f"{prefix}/{name}")}


def flat(tree: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {key: value for name, below in tree.items() for key, value in flat(below, f"{prefix}/{name}").items()}


@pytest.mark.parametrize(
    "names", [*COMPOSITIONS, SMOLLM2, VLLM, ("quickstart.yaml",), *OVER_THE_QUICKSTART], ids="+".join
)
def test_every_shipped_composition_is_a_valid_configuration(
    monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    options = parse(monkeypatch, *names)
    assert str(options["data"]["task"]["class_path"]).startswith("resd_lightning.tasks.")
    assert isinstance(options["trainer"]["callbacks"], list)


def test_diagnostics_are_added_behind_the_lines_of_the_method(monkeypatch: pytest.MonkeyPatch) -> None:
    callbacks = [
        cast("list[dict[str, str]]", parse(monkeypatch, "quickstart.yaml", *laid_over)["trainer"]["callbacks"])
        for laid_over in ([], ["diagnostics.yaml"])
    ]
    assert callbacks[1][:6] == callbacks[0]
    added = [callback["class_path"].rpartition(".")[2] for callback in callbacks[1][6:]]
    assert added == ["SampleTeacher", "ProbeTokens", "DrawPictures"]


def test_continuous_batches_are_as_large_as_the_models_file_says(monkeypatch: pytest.MonkeyPatch) -> None:
    composed = ("model/qwen3_4b_qlora.yaml", "task/manufactoria.yaml", "continuous.yaml")
    engine = cast("dict[str, object]", parse(monkeypatch, *composed)["data"]["engine"])
    assert str(engine["class_path"]).endswith(".ContinuousEngine")
    assert cast("dict[str, int]", engine["init_args"])["batch_size"] == 8


def test_the_quickstart_is_the_composition_of_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = parse(monkeypatch, "quickstart.yaml")
    assert whole == parse(monkeypatch, *MICRO_WORLD)
    assert (whole["data"]["batch_size"], whole["data"]["inner_updates"]) == (32, 4)
    assert (whole["data"]["rollouts_per_prompt"], len(whole["trainer"]["callbacks"])) == (1, 6)


@pytest.mark.parametrize(
    ("name", "differs"),
    [
        ("micro_nf4", {"/policy/quantization"}),
        ("micro_full", {"/policy/lora", "/policy/lora/rank", "/policy/lora/alpha", "/optimizer/learning_rate"}),
    ],
)
def test_variants_of_micro_lm_differ_from_it_in_what_they_say(name: str, differs: set[str]) -> None:
    one, other = (yaml.safe_load((CONFIGS / f"model/{file}.yaml").read_text()) for file in ("micro", name))
    assert one["data"] == other["data"]
    one, other = flat(one["model"]), flat(other["model"])
    assert {key for key in one.keys() | other.keys() if one.get(key, ...) != other.get(key, ...)} == differs


def test_the_real_models_run_is_eight_easy_problems_in_two_batches_of_two_updates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = parse(monkeypatch, *SMOLLM2)
    task = cast("dict[str, object]", options["data"]["task"]["init_args"])
    assert (task["train_size"], task["difficulties"], task["prompt"]) == (8, ["easy"], "short")
    assert (options["data"]["batch_size"], options["data"]["inner_updates"]) == (4, 2)
    assert options["model"]["policy"]["quantization"] == "nf4"
    assert options["data"]["validation"]["temperature"] == 0.6  # type: ignore[comparison-overlap]


def test_the_servers_engine_replaces_the_models_and_samples_at_temperature_1(monkeypatch: pytest.MonkeyPatch) -> None:
    data = parse(monkeypatch, *VLLM)["data"]
    assert str(data["engine"]["class_path"]) == "resd_lightning.rollout.vllm.VllmEngine"
    assert data["engine"]["init_args"]["servers"] == ["http://localhost:8000"]
    assert (data["rollout"]["temperature"], data["rollout"]["max_new_tokens"]) == (1.0, 96)


def test_manufactoria_preset_has_the_papers_values(monkeypatch: pytest.MonkeyPatch) -> None:
    model = parse(monkeypatch, "model/qwen3_4b_qlora.yaml", "task/manufactoria.yaml")["model"]
    loss, context = model["distillation"], model["context"]
    # RESD App. G: reverse KL, ratio in [0.2, 5], top-100 with a tail, no success weights, 200 entries, prioritized
    assert (loss["alpha"], loss["clip_min"], loss["clip_max"]) == (1.0, 0.2, 5.0)
    assert (loss["top_k"], loss["tail"], loss["success_weights"]) == (100, True, False)
    assert (context["max_entries"], context["concise"], context["concise_every"]) == (200, "prioritized", 4)


def test_bouncing_sim_presets_have_the_papers_values(monkeypatch: pytest.MonkeyPatch) -> None:
    # RESD App. G: easy is Jensen-Shannon with success weights, 120 entries by staleness; medium reverse KL without,
    # 150 entries, prioritized
    easy, medium = (
        parse(monkeypatch, "model/qwen3_4b_qlora.yaml", f"task/bouncing_sim_{difficulty}.yaml")["model"]
        for difficulty in ("easy", "medium")
    )
    loss, context = easy["distillation"], easy["context"]
    assert (loss["alpha"], loss["clip_min"], loss["clip_max"], loss["success_weights"]) == (0.5, 0.2, None, True)
    assert (context["max_entries"], context["concise"]) == (120, "staleness")
    loss, context = medium["distillation"], medium["context"]
    assert (loss["alpha"], loss["clip_min"], loss["clip_max"], loss["success_weights"]) == (1.0, 0.2, None, False)
    assert (context["max_entries"], context["concise"]) == (150, "prioritized")


def test_finer_preset_has_the_papers_values(monkeypatch: pytest.MonkeyPatch) -> None:
    model = parse(monkeypatch, "model/qwen3_4b_qlora.yaml", "task/finer.yaml")["model"]
    loss, context = model["distillation"], model["context"]
    # RESD App. G: Jensen-Shannon, ratio at least 0.2, top-100 with a tail, success weights, 120 entries, staleness
    assert (loss["alpha"], loss["clip_min"], loss["clip_max"]) == (0.5, 0.2, None)
    assert (loss["top_k"], loss["tail"], loss["success_weights"]) == (100, True, True)
    assert (context["max_entries"], context["concise"], context["concise_every"]) == (120, "staleness", 4)


def test_sdpo_is_the_teacher_alone_without_what_resd_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    options = parse(monkeypatch, "model/smollm2_nf4.yaml", "task/manufactoria.yaml", "method/sdpo.yaml")
    callbacks = cast("list[dict[str, str]]", options["trainer"]["callbacks"])
    assert [callback["class_path"].rpartition(".")[2] for callback in callbacks] == ["SyncTeacher"]
    prompt = options["model"]["teacher_prompt"]
    assert {name for name, shown in prompt.items() if shown is True} == {"feedback", "solution"}
    assert prompt["self_success"] == "none"


@pytest.mark.parametrize("rollouts", [1, 8])
@pytest.mark.parametrize(("name", "self_success"), [("sdpo", "none"), ("sdpo_ss", "own")])
def test_variants_of_sdpo_differ_from_it_in_what_they_say(rollouts: int, name: str, self_success: str) -> None:
    file = CONFIGS / "method" / (f"{name}.yaml" if rollouts == 1 else f"{name}_8.yaml")
    settings = yaml.safe_load(file.read_text())
    sdpo = yaml.safe_load((CONFIGS / "method/sdpo.yaml").read_text())
    sdpo["model"]["teacher_prompt"]["self_success"] = self_success
    sdpo["model"]["method"] = file.stem.replace("_", "-")
    assert settings == sdpo | ({} if rollouts == 1 else {"data": {"rollouts_per_prompt": 8}})


def test_grpo_has_the_papers_values_and_nothing_of_algorithm_1(monkeypatch: pytest.MonkeyPatch) -> None:
    options = parse(monkeypatch, "model/qwen3_4b_qlora.yaml", "task/manufactoria.yaml", "method/grpo.yaml")
    assert options["trainer"]["callbacks"] == []
    assert (options["model"]["objective"], options["data"]["rollouts_per_prompt"]) == ("grpo", 8)
    # RESD section 5: advantage (R - mean) / std, clip 0.2 below and 0.28 above, no KL
    assert options["model"]["grpo"] == {
        "normalize_by_std": True,
        "clip_low": 0.2,
        "clip_high": 0.28,
        "kl_coefficient": 0.0,
        "reduction": "sequence_mean",
    }


@pytest.mark.parametrize("name", ["resd_then_grpo", "resd_grpo_mixture"])
def test_what_begins_as_resd_has_its_callbacks(name: str) -> None:
    resd, other = (yaml.safe_load((CONFIGS / f"method/{file}.yaml").read_text()) for file in ("resd", name))
    assert other["trainer"]["callbacks"][:6] == resd["trainer"]["callbacks"]


def test_no_two_files_of_a_composition_set_the_same_key_so_their_order_does_not_matter() -> None:
    keys_of = {name: keys(yaml.safe_load((CONFIGS / name).read_text())) for names in SHIPPED.values() for name in names}
    for first, second in combinations(FOLDERS, 2):
        for one, other in product(SHIPPED[first], SHIPPED[second]):
            assert not keys_of[one] & keys_of[other], f"{one} and {other}"
