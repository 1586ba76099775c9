"""Lines the student's response up behind two prompts, so that token t is the same column for student and teacher."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import Cache

from resd_lightning.distill.prefix import SharedPrefix
from resd_lightning.records import DistillBatch


def make_batch(
    student_prompts: Sequence[Sequence[int]],
    teacher_prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    coefficients: Sequence[float],
    pad_id: int,
    rollouts: Sequence[int] = (),
    teacher_prefix: Sequence[int] = (),
    engine_log_probs: Sequence[Sequence[float]] | None = None,
) -> DistillBatch:
    """Return the padded tensors of some rollouts, numbered as the update does; no sequence of tokens may be empty.

    All teacher prompts begin with `teacher_prefix`, and go on. `engine_log_probs` are one per token of each response.
    """
    student_ids, student_mask = beside(student_prompts, responses, pad_id)
    teacher_ids, teacher_mask = beside([p[len(teacher_prefix) :] for p in teacher_prompts], responses, pad_id)
    own = response_mask(responses)
    return DistillBatch(
        student_ids,
        student_mask,
        teacher_ids,
        teacher_mask,
        own,
        torch.tensor(coefficients, dtype=torch.float32),
        rollouts,
        teacher_prefix=torch.tensor(teacher_prefix, dtype=torch.long),
        engine_log_probs=None if engine_log_probs is None else at_tokens(engine_log_probs, own),
    )


def at_tokens(values: Sequence[Sequence[float]], mask: Bool[Tensor, "batch time"]) -> Float[Tensor, "batch time"]:
    """Return one fp32 value for each token of each response where the mask is true, zero elsewhere."""
    flat = torch.tensor([value for row in values for value in row], dtype=torch.float32)
    return torch.zeros(mask.shape).masked_scatter(mask, flat)  # (token,) -> (batch, time)


def empty_batch(pad_id: int, teacher_prefix: Sequence[int] = ()) -> DistillBatch:
    """Return a batch of one token that weighs nothing: it fills a slot and keeps every rank in step."""
    teacher = [[*teacher_prefix, pad_id]]
    filler = make_batch([[pad_id]], teacher, [[pad_id]], [0.0], pad_id, teacher_prefix=teacher_prefix)
    filler.is_filler = True
    return filler


def response_logits(
    model: nn.Module,
    ids: Int[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    response_time: int,
    *,
    is_packed: bool = False,
    prefix: SharedPrefix | None = None,
) -> Float[Tensor, "batch response_time vocab"]:
    """Return the logits that predict the last `response_time` columns; the prompt's are never computed.

    Args:
        model: Reads prompts and responses in one forward pass.
        ids: Their tokens, a row for each.
        mask: True at real tokens.
        response_time: Columns of the responses.
        is_packed: Run the rows as one sequence without padding; attention must tell them apart by their positions.
        prefix: What stands before every row, read already; such rows are padded whatever `is_packed` says.
    """
    if is_packed and prefix is None:
        inputs, places = _packed(ids, mask, response_time)
        packed: Float[Tensor, "1 place vocab"] = model(**inputs, logits_to_keep=places.flatten()).logits
        return packed.view(*places.shape, -1)  # (1, B x T, V) -> (B, T, V)
    output = model(**_inputs(ids, mask, prefix), logits_to_keep=response_time + 1)
    logits: Float[Tensor, "batch time vocab"] = output.logits
    return logits[:, :-1]  # the last position predicts past the response: (B, T + 1, V) -> (B, T, V)


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
    ids, mask = beside(prompts, [response] * len(prompts), pad_id)
    before = ids.shape[1] - len(response) - 1  # the column that predicts the response's first token
    keep = torch.tensor(places, device=device) + before
    logits: Float[Tensor, "prompt place vocab"] = model(
        **_inputs(ids.to(device), mask.to(device)), logits_to_keep=keep
    ).logits
    return logits


def response_mask(responses: Sequence[Sequence[int]]) -> Bool[Tensor, "batch time"]:
    """Return True where a response has a token."""
    lengths = torch.tensor([len(response) for response in responses])
    return torch.arange(int(lengths.max())) < lengths[:, None]  # (B, 1) -> (B, T)


def response_hidden(
    backbone: nn.Module,
    ids: Int[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    response_time: int,
    *,
    is_packed: bool = False,
    prefix: SharedPrefix | None = None,
) -> Float[Tensor, "batch response_time hidden"]:
    """Return the last hidden states that predict the last `response_time` columns; `backbone` has no output head.

    The rest is as in `response_logits`.
    """
    hidden: Float[Tensor, "batch time hidden"]
    if is_packed and prefix is None:
        inputs, places = _packed(ids, mask, response_time)
        hidden = backbone(**inputs).last_hidden_state
        return hidden[0, places]  # (1, N, H) -> (B, T, H)
    hidden = backbone(**_inputs(ids, mask, prefix)).last_hidden_state
    return hidden[:, -response_time - 1 : -1]  # (B, P + T, H) -> (B, T, H)


def _inputs(
    ids: Int[Tensor, "batch time"], mask: Bool[Tensor, "batch time"], prefix: SharedPrefix | None = None
) -> dict[str, Tensor | Cache | bool]:
    positions = (mask.long().cumsum(dim=-1) - 1).clamp_min(0)
    inputs: dict[str, Tensor | Cache | bool] = {"input_ids": ids, "use_cache": False}
    if prefix is None:
        return {**inputs, "attention_mask": mask.long(), "position_ids": positions}
    seen = torch.cat([mask.new_ones(len(mask), prefix.length), mask], dim=1)
    positions = positions + prefix.length
    return {**inputs, "attention_mask": seen.long(), "position_ids": positions, **prefix.cache()}


def _packed(
    ids: Int[Tensor, "batch time"], mask: Bool[Tensor, "batch time"], response_time: int
) -> tuple[dict[str, Tensor | bool], Int[Tensor, "batch response_time"]]:
    """Return the rows' real tokens as one sequence, and where in it each response token is predicted.

    Positions start anew with each row, and there is no mask: by that transformers tells the rows apart. Places at
    padding point at some real token.
    """
    positions = mask.long().cumsum(dim=-1) - 1
    places = (mask.flatten().long().cumsum(dim=0) - 1).view_as(ids)  # (B, P + T), counted over all rows
    inputs: dict[str, Tensor | bool] = {"use_cache": False}
    inputs |= {"input_ids": ids[mask].unsqueeze(0), "position_ids": positions[mask].unsqueeze(0)}
    return inputs, places[:, -response_time - 1 : -1]


def beside(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad_id: int
) -> tuple[Int[Tensor, "batch time"], Bool[Tensor, "batch time"]]:
    """Return prompts padded on the left and responses on the right, and where real tokens stand."""
    left = max(len(prompt) for prompt in prompts)
    right = max(len(response) for response in responses)
    ids = torch.full((len(prompts), left + right), pad_id)
    mask = torch.zeros((len(prompts), left + right), dtype=torch.bool)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        start, end = left - len(prompt), left + len(response)
        ids[row, start:end] = torch.tensor([*prompt, *response])
        mask[row, start:end] = True
    return ids, mask
