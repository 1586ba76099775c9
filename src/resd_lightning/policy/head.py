"""The output head as one frozen matrix: what a loss needs that makes its own logits, a chunk of tokens at a time."""

from __future__ import annotations

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel

from resd_lightning.policy.views import STUDENT, Policy

LOGIT_TRANSFORMS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")
"""Keys of a base's config that change its logits after the head (Gemma, Cohere, Granite, Falcon)."""


def logit_transform_of(config: PretrainedConfig) -> str | None:
    """Return the key and value by which a base alters its logits after the head, if its config says that it does."""
    settings = config.to_dict()
    altering = [
        f"{key} {settings[key]}" for key in LOGIT_TRANSFORMS if key in settings and settings[key] not in (None, 1)
    ]
    return altering[0] if altering else None


def backbone_of(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Return the model below its output head, adapters included; it yields the last hidden states, normalised."""
    # Adapters sit inside the layers, so the inner modules of a PeftModel compute with whichever is active.
    backbone: PreTrainedModel = _causal_model(model).base_model
    return backbone


def frozen_head(policy: Policy) -> Float[Tensor, "vocab hidden"]:
    """Return the output head's weight, which all three views share where `head_obstacle` finds nothing."""
    weight: Tensor = _causal_model(policy.model).get_output_embeddings().weight
    return weight


def head_obstacle(policy: Policy) -> str | None:
    """Return why the student's logits aren't its last hidden states times one frozen matrix; None where they are.

    What the head's module shows is told apart by name. What models do to logits beyond it can't be listed, so the last
    word has a comparison on a few tokens.
    """
    model = _causal_model(policy.model)
    if (obstacle := module_obstacle(model)) is not None:
        return obstacle
    ids = torch.arange(min(8, frozen_head(policy).shape[0]), device=policy.device).unsqueeze(0)
    with policy.frozen(STUDENT) as student:
        logits = student(input_ids=ids, use_cache=False).logits.float()
        hidden = backbone_of(student)(input_ids=ids, use_cache=False).last_hidden_state
        gap = (F.linear(hidden, frozen_head(policy)).float() - logits).abs().max() / logits.abs().max()
    if not gap < 1e-2:  # equal but for roundings; not a number is a gap too
        return f"the base's logits differ by {gap:.0%} from its output head's product with its last hidden states"
    return None


def module_obstacle(model: PreTrainedModel) -> str | None:
    """Return what the modules alone show against it, also of a model without weights; see `head_obstacle`."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        return f"the output head is a {type(head).__name__}: adapted, quantized or none"
    if head.weight.requires_grad:
        return "the output head is trained"
    if head.bias is not None:
        return "the output head has a bias"
    if (transform := logit_transform_of(model.config.get_text_config())) is not None:
        return f"the base has {transform}"
    if model.base_model is model:
        return "the base has no part below its output head"
    return None


def _causal_model(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    return model.get_base_model() if isinstance(model, PeftModel) else model
