"""What a plan counts: equal to what is loaded, hand-computed, and moving the right way."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit

from conftest import SMALL_LORA, make_policy, make_tiny_base
from resd_lightning.config import ConfigError, DistillationConfig, LoraSettings, PolicyConfig, TeacherConfig
from resd_lightning.plan import losses
from resd_lightning.plan.activations import backward, kept_by_layer, without_gradient
from resd_lightning.plan.fitting import Card, fits, largest_values, suggestions
from resd_lightning.plan.generation import cache_bytes_per_token
from resd_lightning.plan.memory import peak, phases, student
from resd_lightning.plan.run import Call, Run
from resd_lightning.plan.seconds import Speed, least_seconds
from resd_lightning.plan.shape import read_shape
from resd_lightning.plan.weights import base_bytes, nf4_bytes, resident, trained_weights
from resd_lightning.plan.work import against_sdpo, prompt_flops, work
from resd_lightning.policy.load import check_quantization
from resd_lightning.policy.views import Policy

QWEN3_4B = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 2560,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 9728,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "max_position_embeddings": 262144,
}


QWEN3_30B_A3B = QWEN3_4B | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "tie_word_embeddings": False,
}
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def write_config(folder: Path, **changes: object) -> Path:
    """Write a base that is a config file alone."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(QWEN3_4B | changes))
    return folder


def make_run(base: Path, policy: PolicyConfig | None = None, **changes: object) -> Run:
    """Return a run on a base, with NF4 and adapters unless told otherwise."""
    policy = policy or PolicyConfig(str(base), quantization="nf4")
    run = Run(
        shape=read_shape(policy),
        policy=policy,
        teacher="ema",
        distillation=DistillationConfig(),
        objectives=("distillation",),
        optimizer="adamw",
        is_mixed=True,
        device="cuda",
        micro_batch=1,
        prompt=4096,
        response=8192,
        teacher_prompt=8192,
        engine_batch=8,
        batch=32,
        rollouts=32,
        context=(Call("reflect", 8192, 2048, 32), Call("curate", 8192, 2048, 32)),
        validation=8192,
        validations=128,
    )
    return replace(run, **changes)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Qwen3-4B as configs/model/qwen3_4b_qlora.yaml has it, but without gradient checkpointing."""
    return make_run(write_config(tmp_path_factory.mktemp("qwen")))


def checkpointed(run: Run) -> Run:
    return replace(run, policy=replace(run.policy, gradient_checkpointing=True))


def stored(policy: Policy) -> int:
    """Bytes of a loaded base, NF4's scales and tables included."""
    total = 0
    for name, weight in policy.model.named_parameters():
        if "lora_" not in name:
            total += weight.numel() * weight.element_size()
    for module in policy.model.modules():
        if isinstance(module, Linear4bit):
            state = module.weight.quant_state
            scales = (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
            total += sum(tensor.numel() * tensor.element_size() for tensor in scales)
    return total


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_counts_are_those_of_a_loaded_base_and_its_adapters(dtype: str, quantization: str, tmp_path: Path) -> None:
    base = make_tiny_base(tmp_path / "base", hidden=64)
    policy = make_policy(base, dtype=dtype, quantization=quantization)
    run = make_run(base, PolicyConfig(str(base), dtype=dtype, quantization=quantization, lora=SMALL_LORA))
    assert base_bytes(run) == stored(policy)
    weights = policy.student_weights().values()
    assert run.shape.adapter_weights == trained_weights(run) == sum(weight.numel() for weight in weights)
    assert {weight.element_size() for weight in weights} == {4}
    found = {item.name: item.bytes for item in resident(run)}
    assert found["student's adapter"] == found["gradients"] == sum(weight.nbytes for weight in weights)
    assert found["optimizer state"] == 2 * found["gradients"]


@pytest.mark.parametrize("kind", ["ema", "live"])
def test_whole_models_are_counted_with_the_teachers_copy_where_there_is_one(kind: str, tiny_base: Path) -> None:
    policy = make_policy(tiny_base, TeacherConfig(kind=kind), lora=None)
    run = make_run(tiny_base, PolicyConfig(str(tiny_base), dtype="float32", lora=None), teacher=kind)
    held = {
        weight.data_ptr(): weight.nbytes
        for who in (policy.student_weights(), policy.teacher_weights())
        for weight in who.values()
    }
    found = {item.name: item.bytes for item in resident(run)}
    assert found["base weights"] + found.get("teacher's weights and average", 0) == sum(held.values())


def test_the_shape_is_the_configs(qwen: Run) -> None:
    shape = qwen.shape
    assert (shape.layers, shape.hidden, shape.query, shape.key, shape.intermediate) == (36, 2560, 4096, 1024, 9728)
    assert (shape.vocab, shape.max_positions, shape.hidden_norms, shape.has_head_norms) == (151936, 262144, 2, True)
    assert shape.base_weights == 4_022_468_096  # Qwen3-4B's card says 4.0 B, 3.6 B of them not in embeddings
    assert shape.adapter_weights == 36 * 32 * (5 * 2560 + 2 * 4096 + 2 * 1024 + 3 * 9728 + 2 * 2560)
    assert shape.base_weights - sum(shape.quantizable) == 151936 * 2560 + 36 * (2 * 2560 + 2 * 128) + 2560


def test_a_tokens_cache_and_a_matrix_in_nf4_are_as_computed_by_hand(qwen: Run) -> None:
    assert cache_bytes_per_token(qwen) == 36 * 8 * 128 * 2 * 2 == 147456
    # 2560 x 9728 weights: half a byte each, 389120 blocks of 64, 1520 blocks of 256 of those, and 273 numbers
    assert nf4_bytes(2560 * 9728) == 12451840 + 389120 + 4 * 1520 + 4 * 273


def test_a_layer_keeps_what_is_computed_by_hand(qwen: Run) -> None:
    # bf16 by autocast over NF4 on a GPU, rank 32. In fp32: inputs of two norms of 2560 and of those of queries (4096)
    # and keys (1024), and a number a head. In bf16: queries, keys, values and output of attention; three times 9728;
    # the inputs of the adapters (attention's output is there already); seven outputs of A.
    wide = 4 * (2 * 2560 + 4096 + 1024 + 32)
    narrow = 2 * (2 * 4096 + 2 * 1024 + 3 * 9728 + 2560 + 2560 + 9728 + 7 * 32)
    # PEFT leaves the cast to autocast here, which finds bf16 already: one input serves several adapters
    assert kept_by_layer(qwen, 1, 1) == wide + narrow


@pytest.mark.parametrize("key", ["prompt", "response", "teacher_prompt", "micro_batch", "engine_batch", "validation"])
def test_no_phase_needs_less_when_a_length_or_a_batch_grows_and_one_needs_more(key: str, qwen: Run) -> None:
    before = phases(qwen)
    after = phases(replace(qwen, **{key: 2 * getattr(qwen, key)}))
    assert all(more.bytes >= less.bytes for less, more in zip(before, after, strict=True))
    assert any(more.bytes > less.bytes for less, more in zip(before, after, strict=True))


def test_checkpointing_the_fused_loss_and_nf4_each_need_less(qwen: Run) -> None:
    def of_student(run: Run) -> int:
        return sum(item.bytes for item in (*resident(run), *student(run)))

    plain = replace(qwen, distillation=replace(qwen.distillation, loss="plain"))
    unquantized = replace(qwen, policy=replace(qwen.policy, quantization="none"))
    assert of_student(checkpointed(qwen)) < of_student(qwen) < of_student(plain)
    assert of_student(qwen) < of_student(unquantized)
    assert qwen.is_fused
    assert not plain.is_fused


def test_the_loss_is_plain_where_a_run_would_take_the_plain_one(qwen: Run, tmp_path: Path) -> None:
    assert not replace(qwen, teacher="trust_region").is_fused
    assert not replace(qwen, distillation=replace(qwen.distillation, top_k=None)).is_fused
    untied = write_config(tmp_path / "untied", tie_word_embeddings=False, num_hidden_layers=1)
    on_head = PolicyConfig(str(untied), lora=LoraSettings(target_modules=["q_proj", "lm_head"]))
    assert not make_run(untied, on_head).is_fused
    assert make_run(untied).is_fused
    small = write_config(tmp_path / "small", vocab_size=1000, hidden_size=64, num_hidden_layers=1)
    assert not make_run(small).is_fused


def test_a_peak_is_the_largest_phase_and_not_their_sum(qwen: Run) -> None:
    assert peak(qwen).bytes == max(phase.bytes for phase in phases(qwen))
    names = [phase.name for phase in phases(qwen)]
    assert names == [
        "rollout",
        "reflect, curate",
        "teacher forward",
        "student forward and backward",
        "optimizer step",
        "validation",
    ]


def test_the_policy_gradient_alone_has_no_teacher_and_no_context(qwen: Run) -> None:
    grpo = replace(qwen, objectives=("grpo",))
    assert [phase.name for phase in phases(grpo)] == [
        "rollout",
        "student forward and backward",
        "optimizer step",
        "validation",
    ]
    both = replace(qwen, objectives=("mixture",))
    for one in (qwen, grpo):  # a mixture's two losses take turns
        assert peak(both).bytes >= peak(one).bytes


def test_the_largest_values_fit_and_the_next_ones_do_not(qwen: Run) -> None:
    run, card = checkpointed(qwen), Card("a card", 24, 2)
    fields = {
        "data.micro_batch_size": "micro_batch",
        "data.rollout.max_new_tokens": "response",
        "data.engine.init_args.batch_size": "engine_batch",
    }
    found = largest_values(run, card)
    assert found.keys() == fields.keys()
    for key, value in found.items():
        assert fits(replace(run, **{fields[key]: value}), card)
        assert not fits(replace(run, **{fields[key]: value + 1}), card)
    assert set(largest_values(run, Card("a small card", 4, 2)).values()) == {0}
    huge = largest_values(run, Card("a huge card", 1e6, 0))
    assert huge["data.micro_batch_size"] == 32
    assert huge["data.rollout.max_new_tokens"] == 262144 - 8192


def test_suggestions_save_what_planning_again_says(qwen: Run) -> None:
    card = Card("a card", 24, 2)
    found = {each.options: each for each in suggestions(qwen, card)}
    checkpointing = found["--model.policy.gradient_checkpointing true"]
    before, after = ({phase.name: phase.bytes for phase in phases(run)} for run in (qwen, checkpointed(qwen)))
    assert checkpointing.saved == before["student forward and backward"] - after["student forward and backward"]
    assert checkpointing.phase == "student forward and backward"
    assert (checkpointing.peak, checkpointing.fits) == (max(after.values()), True)
    assert "--model.policy.quantization nf4" not in found
    assert suggestions(checkpointed(qwen), card) == []


def test_whole_models_are_told_of_adapters(qwen: Run) -> None:
    whole = make_run(Path(qwen.policy.base), PolicyConfig(qwen.policy.base, dtype="float32", lora=None))
    found = {each.options: each for each in suggestions(whole, Card("a card", 80, 2))}
    assert found["--model.policy.lora {}"].saved > 3 * 4 * whole.shape.base_weights


def test_work_counts_two_operations_a_weight_and_two_thirds_of_training_on_a_frozen_base(qwen: Run) -> None:
    found = {each.name: each for each in work(qwen)}
    assert (found["rollout"].read, found["rollout"].written) == (32 * 4096, 32 * 8192)
    assert found["teacher forward"].read == 32 * (8192 + 8192)
    time, width = 8192 + 8192, 4096
    by_hand = 36 * (
        2 * time * (qwen.shape.layer_weights + qwen.shape.adapter_weights / 36) + 4 * width * time * (time + 1) / 2
    )
    assert found["teacher forward"].flops == pytest.approx(32 * (by_hand + 2 * 8192 * 151936 * 2560))
    whole = make_run(Path(qwen.policy.base), PolicyConfig(qwen.policy.base, dtype="float32", lora=None))
    assert {each.name: each for each in work(whole)}["student forward and backward"].flops > (
        found["student forward and backward"].flops * 1.2
    )


def test_the_ratio_to_sdpo_is_what_reflection_and_curation_write(qwen: Run) -> None:
    ratio = against_sdpo(qwen)
    assert ratio is not None
    assert ratio.written == pytest.approx((8192 + 2048 + 2048) / 8192)
    assert 1 < ratio.flops < ratio.written
    assert against_sdpo(replace(qwen, context=())) is None


def test_layers_of_another_kind_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_layer": 1, "n_embd": 32, "n_head": 2}))
    with pytest.raises(ConfigError, match="knows decoder layers like Llama's"):
        read_shape(PolicyConfig(str(tmp_path)))


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Qwen3-30B-A3B as configs/model/qwen3_30b_a3b_lora.yaml has it, on 8 devices by FSDP2."""
    base = write_config(tmp_path_factory.mktemp("mixture"), **QWEN3_30B_A3B)
    policy = PolicyConfig(str(base), lora=LoraSettings(target_modules=ATTENTION), gradient_checkpointing=True)
    return make_run(base, policy, ranks=8, is_sharded=True)


def test_a_mixtures_shape_is_the_configs(mixture: Run) -> None:
    shape, experts = mixture.shape, mixture.shape.experts
    attention, each = 2048 * (4096 + 512 + 512) + 4096 * 2048, 3 * 2048 * 768
    assert shape.base_weights == 30_532_122_624  # its card says 30.5 B, 3.3 B of them activated
    assert shape.outside_weights == 2 * 151936 * 2048 + 2048
    assert experts is not None
    assert (experts.number, experts.per_token, experts.weights_of_one) == (128, 8, each)
    assert shape.weights_met == attention + 8 * each + 128 * 2048
    assert 48 * shape.weights_met + shape.outside_weights == pytest.approx(3.35e9, rel=0.01)
    assert shape.adapter_weights == 48 * 32 * (3 * 2048 + 4096 + 512 + 512 + 4096 + 2048)
    assert experts.expected(1) == pytest.approx(8)
    assert 8 < experts.expected(16) < experts.expected(10_000) == pytest.approx(128)


@pytest.mark.parametrize("lora", [LoraSettings(), None], ids=["adapters on experts", "whole"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # PEFT's, on patterns of its own that match nothing
def test_experts_that_are_trained_are_refused_by_name(lora: LoraSettings | None, tmp_path: Path) -> None:
    base = write_config(tmp_path / "mixture", **QWEN3_30B_A3B)
    with pytest.raises(ConfigError, match=r"set model.policy.lora.target_modules to \['q_proj'"):
        read_shape(PolicyConfig(str(base), dtype="float32", lora=lora))


def test_layers_that_are_not_alike_are_refused(tmp_path: Path) -> None:
    base = write_config(tmp_path / "mixture", **QWEN3_30B_A3B, mlp_only_layers=[0])
    with pytest.raises(ConfigError, match="this one's differ among themselves"):
        read_shape(PolicyConfig(str(base), lora=LoraSettings(target_modules=ATTENTION)))


def test_experts_that_are_stored_the_other_way_round_are_refused(tmp_path: Path) -> None:
    sizes = {"num_hidden_layers": 1, "hidden_size": 64, "head_dim": 16, "num_attention_heads": 4, "vocab_size": 99}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt_oss", "intermediate_size": 64, **sizes}))
    with pytest.raises(ConfigError, match=r"experts like Mixtral's, and this one's have .*'gate_up_proj'"):
        read_shape(PolicyConfig(str(tmp_path), lora=LoraSettings(target_modules=ATTENTION)))


def test_experts_wider_than_the_stream_set_the_height_of_its_passes(mixture: Run) -> None:
    assert mixture.shape.experts is not None
    wider = replace(mixture.shape.experts, intermediate=4 * mixture.shape.hidden)
    wide = replace(mixture, shape=replace(mixture.shape, experts=wider))
    rows = 1000 * wider.per_token * mixture.stored_bytes
    grown = without_gradient(wide, 1, 1000) - without_gradient(mixture, 1, 1000)
    assert grown == rows * (4 * wider.intermediate - 3 * wider.hidden)
    more_kept = kept_by_layer(wide, 1, 1000) - kept_by_layer(mixture, 1, 1000)  # which is there again in checkpointing
    assert backward(wide, 1, 1000) - backward(mixture, 1, 1000) - more_kept == rows * (11 - 3) * wider.hidden


def test_nf4_is_no_help_for_a_mixture(mixture: Run) -> None:
    options = [found.options for found in suggestions(mixture, Card("small", 8, 1))]
    assert options
    assert not any("nf4" in option for option in options)


def test_nf4_is_refused_where_most_weights_are_no_linear_layers(tmp_path: Path) -> None:
    mixture, dense = write_config(tmp_path / "mixture", **QWEN3_30B_A3B), write_config(tmp_path / "dense")
    with pytest.raises(ConfigError, match=r"nf4 would quantize 3% of .* stacked experts here are not\. Set"):
        check_quantization(PolicyConfig(str(mixture), quantization="nf4"))
    neox = {
        "model_type": "gpt_neox",
        "num_hidden_layers": 1,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "vocab_size": 99,
    }
    (tmp_path / "config.json").write_text(json.dumps(neox | {"intermediate_size": 64}))
    check_quantization(PolicyConfig(str(tmp_path), quantization="nf4"))
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "bloom", "n_layer": 1, "hidden_size": 32, "n_head": 2})
    )
    check_quantization(PolicyConfig(str(tmp_path), quantization="nf4"))  # its layers are called `h`
    gpt2 = {"model_type": "gpt2", "n_layer": 1, "n_embd": 32, "n_head": 2, "n_positions": 8}
    (tmp_path / "config.json").write_text(json.dumps(gpt2))
    check_quantization(PolicyConfig(str(tmp_path), quantization="nf4"))  # its linear layers are transformers' Conv1D
    check_quantization(PolicyConfig(str(mixture)))
    check_quantization(PolicyConfig(str(dense), quantization="nf4"))


def test_a_rank_holds_its_part_of_the_layers_and_the_whole_around_them(mixture: Run) -> None:
    around, layers = mixture.shape.outside_weights, mixture.shape.base_weights - mixture.shape.outside_weights
    found = {item.name: item.bytes for item in resident(mixture)}
    assert found["base weights"] == 2 * around + 2 * layers // 8
    assert found["gradients"] == 4 * mixture.shape.adapter_weights // 8
    by_phase = {phase.name: {item.name: item.bytes for item in phase.items} for phase in phases(mixture)}
    whole = 2 * layers + 8 * mixture.shape.adapter_weights
    assert by_phase["rollout"]["48 layers gathered"] == whole
    assert by_phase["teacher forward"]["2 layers gathered"] == whole // 24
    assert (
        by_phase["student forward and backward"]["whole gradients of 2 layers"]
        == 4 * mixture.shape.adapter_weights // 24
    )
    alone = replace(mixture, ranks=1)
    assert peak(alone).bytes > peak(mixture).bytes
    assert not any("gathered" in item.name for phase in phases(alone) for item in phase.items)
    served = replace(mixture, engine_batch=None)  # another process generates: nothing is gathered for it
    assert not any("48 layers" in item.name for phase in phases(served) for item in phase.items)


def test_whole_models_are_sharded_whole(qwen: Run) -> None:
    full = replace(qwen, policy=replace(qwen.policy, lora=None, quantization="none", dtype="float32"))
    full = replace(full, shape=read_shape(full.policy), ranks=4, is_sharded=True)
    found = {item.name: item.bytes for item in resident(full)}
    assert found["base weights"] == found["gradients"] == 4 * full.shape.base_weights // 4
    around = full.shape.outside_weights
    whole = 4 * ((full.shape.base_weights - around) // 18 + around)  # FSDP2's outermost unit has what is around layers
    student = {item.name: item.bytes for item in phases(full)[-3].items}
    assert student["2 layers gathered"] == student["whole gradients of 2 layers"] == whole


def test_each_rank_generates_its_share(qwen: Run) -> None:
    def cache(run: Run) -> int:
        return next(item.bytes for item in phases(run)[0].items if item.name == "KV cache")

    assert cache(replace(qwen, ranks=16)) == cache(qwen) / 4  # 2 of 32 rollouts instead of batches of 8
    alone, shared = ({item.name: item.bytes for item in resident(run)} for run in (qwen, replace(qwen, ranks=16)))
    assert shared == alone | {"gradients in ddp's buckets": 4 * qwen.shape.adapter_weights}  # all else is on each


def test_the_least_seconds_are_operations_and_bytes_over_the_data_sheets(qwen: Run) -> None:
    speed = Speed(tflops=100, gb_per_s=1000)
    found = {phase.name: least_seconds(qwen, phase, speed) for phase in work(qwen)}
    flops = {phase.name: phase.flops for phase in work(qwen)}
    assert found["teacher forward"] == pytest.approx(flops["teacher forward"] / 1e14)
    steps, weights = 4 * 8192, base_bytes(qwen) + 2 * qwen.shape.adapter_weights  # four batches of 8
    cache = 32 * 8192 * (4096 + 8192 / 2) * cache_bytes_per_token(qwen)
    reading = 32 * prompt_flops(qwen, qwen.rollout) / 1e14
    assert found["rollout"] == pytest.approx(reading + (steps * weights + cache) / 1e12)
    halves = {phase.name: least_seconds(replace(qwen, ranks=2), phase, speed) for phase in work(qwen)}
    assert all(halves[name] == pytest.approx(seconds / 2) for name, seconds in found.items() if seconds is not None)
    served = replace(qwen, engine_batch=None)
    assert [least_seconds(served, phase, speed) is None for phase in work(served)] == [True, True, True, False, False]


def test_a_step_reads_the_experts_that_its_tokens_meet_and_no_embeddings(mixture: Run) -> None:
    speed = Speed(tflops=1e9, gb_per_s=1)
    one = replace(mixture, rollouts=8, prompt=0, response=1000, engine_batch=1)
    seconds = least_seconds(one, work(one)[0], speed)
    shape = mixture.shape
    read = 2 * (48 * (shape.weights_met + 2 * 2048 + 2 * 128) + 151936 * 2048 + 2048) + 2 * shape.adapter_weights
    cache = cache_bytes_per_token(one) * 1000 / 2
    assert seconds == pytest.approx(1000 * (read + cache) / 1e9, rel=1e-6)


def test_a_last_batch_reads_the_experts_of_its_own_tokens(mixture: Run) -> None:
    def seconds(rollouts: int) -> float:
        run = replace(mixture, ranks=1, rollouts=rollouts, engine_batch=16)
        return least_seconds(run, work(run)[0], Speed(tflops=989, gb_per_s=4800)) or 0.0

    assert seconds(17) == pytest.approx(seconds(16) + seconds(1))


def test_a_step_of_trained_weights_reads_what_autocast_made_of_them(qwen: Run) -> None:
    full = replace(qwen, policy=replace(qwen.policy, lora=None, quantization="none", dtype="float32"))
    full = replace(full, shape=read_shape(full.policy), rollouts=1, prompt=0, response=1, engine_batch=1)
    cache = cache_bytes_per_token(full) / 2
    seconds = least_seconds(full, work(full)[0], Speed(tflops=1e9, gb_per_s=1))
    assert seconds == pytest.approx((2 * full.shape.base_weights + cache) / 1e9, rel=1e-6)


@pytest.mark.skipif(sys.platform != "linux", reason="the profiler's records of memory are checked on Linux")
@pytest.mark.filterwarnings("default")  # the profiler's, and transformers' on checkpointing
@pytest.mark.parametrize("case", ["fused", "fused_checkpointing", "plain", "experts_checkpointing", "wide_experts"])
def test_predicted_peaks_are_the_measured_ones(case: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[3] / "benchmarks")
    benchmark = import_module("plan")
    options = Namespace(
        vocab=4096, hidden=256, layers=2, prompt=64, response=192, teacher_prompt=128, engine_batch=2, new_tokens=2,
        device="cpu", threads=1,
    )  # fmt: skip
    benchmark.write_base(tmp_path, benchmark.CASES[case], options)
    run = benchmark.run_of(benchmark.CASES[case], tmp_path, options)
    predicted, measured = benchmark.predict(run), benchmark.measure(run, torch.device("cpu"))
    assert predicted["update"] == pytest.approx(measured["update"], rel=0.15)
    assert predicted["teacher"] == pytest.approx(measured["teacher"], rel=0.15)


def test_moments_in_8_bits_take_a_quarter(qwen: Run) -> None:
    def moments(run: Run) -> int:
        return next(item.bytes for item in resident(run) if item.name == "optimizer state")

    assert moments(replace(qwen, optimizer="adamw_8bit")) == pytest.approx(moments(qwen) / 4, rel=0.02)


def test_grpos_log_probs_in_chunks_take_less_than_all_logits_and_only_with_adapters(qwen: Run) -> None:
    assert qwen.is_grpo_fused
    full = replace(qwen, policy=replace(qwen.policy, lora=None, quantization="none", dtype="float32"))
    assert not full.is_grpo_fused
    assert losses.loss(qwen, "grpo") < losses.loss(full, "grpo") / 5
