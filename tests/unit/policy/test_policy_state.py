"""What a policy leaves in a checkpoint, and what other programs can load of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from conftest import SMALL_LORA, make_policy, move
from resd_lightning.config import LoraSettings, TeacherConfig, TeacherKind
from resd_lightning.policy.views import Policy

IDS = torch.tensor([[5, 60, 7, 80, 9, 100]])


def trained(base: Path, kind: TeacherKind, lora: LoraSettings | None, dtype: str) -> Policy:
    policy = make_policy(base, TeacherConfig(kind, ema_rate=1e-4), lora=lora, dtype=dtype)
    for seed in (1, 2):
        move(policy.student_weights().values(), seed=seed)
        policy.sync_teacher()
    return policy


@pytest.mark.parametrize(
    ("lora", "dtype"),
    [(SMALL_LORA, "float32"), (SMALL_LORA, "bfloat16"), (None, "float32")],
    ids=["lora", "lora-bf16-base", "full"],
)
@pytest.mark.parametrize("kind", ["ema", "live", "initial", "trust_region"])
def test_a_state_loads_to_the_bit_and_goes_on_alike(
    kind: TeacherKind, lora: LoraSettings | None, dtype: str, tiny_base: Path
) -> None:
    policy = trained(tiny_base, kind, lora, dtype)
    other = make_policy(tiny_base, TeacherConfig(kind, ema_rate=1e-4), lora=lora, dtype=dtype)
    other.load_state(policy.state())
    for _ in range(2):
        for one in (policy, other):
            one.sync_teacher()
            move(one.student_weights().values(), seed=3)
        for part, weights in policy.state().items():
            assert weights.keys() == other.state()[part].keys()
            for name, weight in weights.items():
                assert torch.equal(weight, other.state()[part][name]), (part, name)
        for name, weight in policy.teacher_weights().items():
            assert torch.equal(weight, other.teacher_weights()[name]), name


def test_the_fp32_average_survives_a_load_into_bf16_weights(tiny_base: Path) -> None:
    policy = make_policy(tiny_base, TeacherConfig("ema", ema_rate=1e-4)).to(torch.bfloat16)
    for seed in (1, 2):
        move(policy.student_weights().values(), seed=seed)
        policy.sync_teacher()
    average = policy.state()["teacher"]
    assert {weight.dtype for weight in average.values()} == {torch.float32}
    assert any(not torch.equal(weight, weight.bfloat16().float()) for weight in average.values())
    other = make_policy(tiny_base, TeacherConfig("ema", ema_rate=1e-4))
    other.load_state(policy.state())
    other.to(torch.bfloat16)  # as a trainer casts after it has loaded a checkpoint
    for name, weight in other.state()["teacher"].items():
        assert torch.equal(weight, average[name]), name


def test_a_state_holds_copies(tiny_base: Path) -> None:
    policy = make_policy(tiny_base)
    state = policy.state()
    before = {name: weight.clone() for name, weight in state["student"].items()}
    move(policy.student_weights().values())
    assert all(torch.equal(weight, before[name]) for name, weight in state["student"].items())


def test_a_state_with_adapters_holds_no_weight_of_the_base(tiny_base: Path) -> None:
    policy = trained(tiny_base, "ema", SMALL_LORA, "float32")
    state = policy.state()
    assert state.keys() == {"student", "teacher"}
    assert all(".lora_" in name for weights in state.values() for name in weights)
    num_trained = sum(weight.numel() for weight in policy.parameters() if weight.requires_grad)
    assert sum(weight.numel() for weights in state.values() for weight in weights.values()) == 2 * num_trained


def test_a_live_teacher_is_not_saved_twice(tiny_base: Path) -> None:
    assert make_policy(tiny_base, TeacherConfig("live")).state().keys() == {"student"}


def test_a_state_of_another_rank_is_refused(tiny_base: Path) -> None:
    policy = make_policy(tiny_base)
    other = make_policy(tiny_base, lora=LoraSettings(rank=3, alpha=4))
    with pytest.raises(RuntimeError, match="size of tensor"):
        other.load_state(policy.state())


def greedy(model: PreTrainedModel | PeftModel) -> list[int]:
    config = GenerationConfig(max_new_tokens=20, do_sample=False, pad_token_id=0)
    output = model.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), generation_config=config)
    return output[0, IDS.shape[1] :].tolist()


def test_plain_peft_loads_the_saved_student_and_says_the_same(tiny_base: Path, tmp_path: Path) -> None:
    policy = make_policy(tiny_base)
    move(policy.student_weights().values(), seed=1)
    move(policy.teacher_weights().values(), seed=2)
    policy.save_pretrained(tmp_path / "student")

    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, tmp_path / "student").eval()
    with policy.frozen("student") as model, torch.no_grad():
        assert torch.equal(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits)
        assert greedy(loaded) == greedy(model)
    with policy.frozen("teacher") as model:
        assert greedy(loaded) != greedy(model)  # the teacher would have said something else


def test_the_saved_folder_holds_the_student_alone_and_its_tokenizer(tiny_base: Path, tmp_path: Path) -> None:
    policy = make_policy(tiny_base)
    policy.save_pretrained(tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    assert not [path for path in tmp_path.rglob("*") if "teacher" in path.name]
    assert "teacher" not in json.dumps(json.loads((tmp_path / "adapter_config.json").read_text()))
    student_bytes = 4 * sum(weight.numel() for weight in policy.student_weights().values())
    assert student_bytes <= (tmp_path / "adapter_model.safetensors").stat().st_size < 2 * student_bytes
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == policy.tokenizer.chat_template


def test_saving_changes_nothing_in_the_policy(tiny_base: Path, tmp_path: Path) -> None:
    policy = make_policy(tiny_base)
    names = [(name, weight.requires_grad) for name, weight in policy.named_parameters()]
    policy.save_pretrained(tmp_path)
    assert [(name, weight.requires_grad) for name, weight in policy.named_parameters()] == names


def test_a_fully_fine_tuned_student_is_saved_as_a_whole_model(tiny_base: Path, tmp_path: Path) -> None:
    policy = make_policy(tiny_base, lora=None)
    move(policy.student_weights().values())
    policy.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with policy.frozen("student") as model, torch.no_grad():
        assert torch.equal(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits)
