"""What layers remember of earlier tokens: it decides which ways of reading several prompts at once are exact."""

from __future__ import annotations

from peft import PeftModel
from transformers import DynamicCache, PreTrainedModel


def obstacle_to_prefix(model: PreTrainedModel | PeftModel) -> str | None:
    """Return why a model's prompts can't share a prefix; None where each layer attends to all that came before."""
    if (obstacle := _other_layers(model, {"DynamicLayer"})) is not None:
        return obstacle
    rope = model.config.get_text_config(decoder=True).to_dict().get("rope_parameters") or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):
        return f"the base's positions are of the kind {rope['rope_type']}: they depend on how long a whole prompt is"
    return None


def obstacle_to_packing(model: PreTrainedModel | PeftModel) -> str | None:
    """Return why packed sequences don't stay apart; attention keeps them so, a recurrent layer's state does not."""
    return _other_layers(model, {"DynamicLayer", "DynamicSlidingWindowLayer"})


def _other_layers(model: PreTrainedModel | PeftModel, allowed: set[str]) -> str | None:
    """Return what layers there are of other kinds, by the caches that transformers makes for them; None for none."""
    layers = DynamicCache(config=model.config.get_text_config(decoder=True)).layers
    other = sorted({type(layer).__name__ for layer in layers} - allowed)
    return f"the base has layers of the kind {', '.join(other)}" if other else None
