"""Lines the student's response up behind two prompts, so that token t is the same column for student and teacher."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from resd_lightning.records import DistillBatch


def make_batch(
    student_prompts: Sequence[Sequence[int]],
    teacher_prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    coefficients: Sequence[float],
    pad_id: int,
    rollouts: Sequence[int] = (),
) -> DistillBatch:
    """Return the padded tensors of some rollouts, numbered as the update does; no sequence of tokens may be empty."""
    student_ids, student_mask = _beside(student_prompts, responses, pad_id)
    teacher_ids, teacher_mask = _beside(teacher_prompts, responses, pad_id)
    longest = max(len(response) for response in responses)
    lengths = torch.tensor([len(response) for response in responses])
    response_mask = torch.arange(longest) < lengths[:, None]  # (B, 1) -> (B, T)
    return DistillBatch(
        student_ids,
        student_mask,
        teacher_ids,
        teacher_mask,
        response_mask,
        torch.tensor(coefficients, dtype=torch.float32),
        rollouts,
    )


def empty_batch(pad_id: int) -> DistillBatch:
    """Return a batch of one token that weighs nothing: it fills a slot and keeps every rank in step."""
    return make_batch([[pad_id]], [[pad_id]], [[pad_id]], [0.0], pad_id)


def response_logits(
    model: nn.Module, ids: Int[Tensor, "batch time"], mask: Bool[Tensor, "batch time"], response_time: int
) -> Float[Tensor, "batch response_time vocab"]:
    """Return the logits that predict the last `response_time` columns; the prompt's are never computed."""
    # the last position predicts past the response: (B, T + 1, V) -> (B, T, V)
    return _logits(model, ids, mask, response_time + 1)[:, :-1]


def logits_at(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    response: Sequence[int],
    places: Sequence[int],
    pad_id: int,
    device: torch.device,
) -> Float[Tensor, "prompt place vocab"]:
    """Return the logits that predict some of a response's tokens behind each of several prompts.

    Args:
        model: Reads prompt and response in one forward pass; logits of other places are never computed.
        prompts: Tokens of each prompt.
        response: The response's tokens.
        places: Which of them to predict, by their index in the response.
        pad_id: Token that fills the padding.
        device: The model's.
    """
    ids, mask = _beside(prompts, [response] * len(prompts), pad_id)
    before = ids.shape[1] - len(response) - 1  # the column that predicts the response's first token
    keep = torch.tensor(places, device=device) + before
    return _logits(model, ids.to(device), mask.to(device), keep)


def _logits(
    model: nn.Module, ids: Int[Tensor, "batch time"], mask: Bool[Tensor, "batch time"], keep: int | Int[Tensor, " kept"]
) -> Float[Tensor, "batch kept vocab"]:
    output = model(
        input_ids=ids,
        attention_mask=mask.long(),
        position_ids=(mask.long().cumsum(dim=-1) - 1).clamp_min(0),
        use_cache=False,
        logits_to_keep=keep,
    )
    logits: Float[Tensor, "batch kept vocab"] = output.logits
    return logits


def _beside(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad_id: int
) -> tuple[Int[Tensor, "batch time"], Bool[Tensor, "batch time"]]:
    left = max(len(prompt) for prompt in prompts)
    right = max(len(response) for response in responses)
    ids = torch.full((len(prompts), left + right), pad_id)
    mask = torch.zeros((len(prompts), left + right), dtype=torch.bool)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        start, end = left - len(prompt), left + len(response)
        ids[row, start:end] = torch.tensor([*prompt, *response])
        mask[row, start:end] = True
    return ids, mask
