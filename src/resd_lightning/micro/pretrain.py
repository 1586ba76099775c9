"""`python -m resd_lightning.micro.pretrain`: makes micro-lm from nothing, seeded."""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Bool, Int
from jsonargparse import auto_cli
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from resd_lightning.micro.documents import DocumentWriter, Turn
from resd_lightning.micro.tokens import micro_tokenizer

logger = logging.getLogger(__name__)

POOL = 1024
"""Documents drawn at a time, to be batched with others of their length."""
MIX_FIRST = {"repeat": 0.4, "recall": 0.6, "practise": 0.0, "converse": 0.0}
MIX_EARLY = {"repeat": 0.1, "recall": 0.35, "practise": 0.4, "converse": 0.15}
MIX_LATE = {"repeat": 0.05, "recall": 0.15, "practise": 0.15, "converse": 0.65}
"""Shares of the documents; a conversation is some ten times as long as what is repeated or recalled."""
FIRST_TOKENS = 1_700_000
"""Tokens of the first mix: looking up is learned in one sudden step, and the sooner the less else is asked."""
GROWTH_TOKENS = 4_500_000
"""Tokens after those over which playbooks grow to 64 entries and the mix goes from early to late."""
DECAY_SHARE = 0.3
"""Share of the tokens, the last ones, over which the rate falls to zero."""


SAVE_EVERY_S = 120.0
"""Seconds between two saved states."""
STATE_FILE = "training_state.pt"
"""Weights, moments and position, to go on from; not part of the model."""


@dataclass(frozen=True)
class Position:
    """How far a pre-training is: tokens trained on, pools of documents drawn, optimizer steps taken."""

    tokens: int = 0
    pools: int = 0
    steps: int = 0


@dataclass(frozen=True)
class Batch:
    """Documents of similar length, padded on the right; only the model's own turns are learned."""

    ids: Int[Tensor, "batch time"]
    is_learned: Bool[Tensor, "batch time"]


def encode_document(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn]) -> tuple[list[int], list[bool]]:
    """Return a document's tokens, and which of them the model is trained to write."""
    ids: list[int] = []
    is_learned: list[bool] = []
    user, assistant = tokenizer.convert_tokens_to_ids(["<|user|>", "<|assistant|>"])
    for said, answer in turns:
        prompt = [user, *tokenizer.encode(said, add_special_tokens=False), assistant]
        reply = [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]
        ids += prompt + reply
        is_learned += [False] * len(prompt) + [True] * len(reply)
    return ids, is_learned


def batches(
    writer: DocumentWriter, tokenizer: PreTrainedTokenizerBase, mix: dict[str, float], tokens: int
) -> Iterator[Batch]:
    """Yield one pool of documents in batches of about `tokens` tokens, padding included, in a drawn order."""
    kinds, weights = list(mix), list(mix.values())
    pool = [encode_document(tokenizer, writer.draw(kinds, weights)) for _ in range(POOL)]
    pool.sort(key=lambda document: len(document[0]))
    chunks: list[list[tuple[list[int], list[bool]]]] = [[]]
    for document in pool:
        if chunks[-1] and (len(chunks[-1]) + 1) * len(document[0]) > tokens:
            chunks.append([])
        chunks[-1].append(document)
    writer.rng.shuffle(chunks)
    for chunk in chunks:
        longest = max(len(written) for written, _ in chunk)
        padded = torch.full((len(chunk), longest), int(tokenizer.pad_token_id))
        is_learned = torch.zeros((len(chunk), longest), dtype=torch.bool)
        for row, (written, learned) in enumerate(chunk):
            padded[row, : len(written)] = torch.tensor(written)
            is_learned[row, : len(written)] = torch.tensor(learned)
        yield Batch(padded, is_learned)


def new_model(tokenizer: PreTrainedTokenizerBase, hidden: int, layers: int, heads: int) -> LlamaForCausalLM:
    """Return a model with random weights."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=3 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def pretrain(
    out: Path,
    seed: int = 0,
    total_tokens: int = 12_500_000,
    learning_rate: float = 4e-3,
    batch_tokens: int = 4_096,
    hidden: int = 128,
    layers: int = 4,
    heads: int = 4,
    warm_up_steps: int = 100,
    compile_model: bool = False,
) -> None:
    """Train micro-lm and write it, with its tokenizer, as a Hugging Face folder.

    Documents that only repeat or look up come first, then single skills and conversations, whose playbooks grow to 64
    entries. The matrices are trained by Muon, which learns to look up in far fewer tokens than AdamW; embeddings and
    norms by AdamW. The rate is constant after a warm-up and falls linearly at the end. Every two
    minutes the training state is saved beside the model: the same command goes on from it.

    Args:
        out: Folder to write.
        seed: Seed of weights and documents.
        total_tokens: Tokens to train on, padding included.
        learning_rate: Peak rate of both optimizers.
        batch_tokens: Tokens per step.
        hidden: Width.
        layers: Depth.
        heads: Attention heads.
        warm_up_steps: Steps over which the rate rises.
        compile_model: Run through torch.compile: faster after a minute, and needs a C++ compiler.
    """
    made_by = {name: value for name, value in locals().items() if name != "out"}
    torch.manual_seed(seed)
    tokenizer = micro_tokenizer()
    model = new_model(tokenizer, hidden, layers, heads)
    optimizers = new_optimizers(model)
    writer = DocumentWriter(random.Random())
    out.mkdir(parents=True, exist_ok=True)
    at = _restore(out / STATE_FILE, model, optimizers, made_by)
    body = cast("nn.Module", torch.compile(model.model, dynamic=True)) if compile_model else model.model
    saved_at = time.monotonic()
    while at.tokens < total_tokens:
        writer.rng.seed(f"micro-lm {seed} pool {at.pools}")
        writer.max_entries, mix = curriculum(at.tokens)
        losses = []
        for batch in batches(writer, tokenizer, mix, batch_tokens):
            factor = min((at.steps + 1) / warm_up_steps, (1 - at.tokens / total_tokens) / DECAY_SHARE, 1.0)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate * max(factor, 1e-3)
            losses.append(_step(model, body, optimizers, batch))
            at = replace(at, tokens=at.tokens + batch.ids.numel(), steps=at.steps + 1)
        at = replace(at, pools=at.pools + 1)
        logger.info("%9d tokens, %d entries, loss %.4f", at.tokens, writer.max_entries, sum(losses) / len(losses))
        if time.monotonic() - saved_at > SAVE_EVERY_S or at.tokens >= total_tokens:
            saved_at = time.monotonic()
            tokenizer.save_pretrained(out)
            _save(out, model, optimizers, at, made_by)


def curriculum(tokens: int) -> tuple[int, dict[str, float]]:
    """Return the longest playbook and the shares of the documents after so many tokens."""
    if tokens < FIRST_TOKENS:
        return 6, MIX_FIRST
    grown = min(1.0, (tokens - FIRST_TOKENS) / GROWTH_TOKENS)
    return 6 + int(58 * grown), {kind: MIX_EARLY[kind] * (1 - grown) + MIX_LATE[kind] * grown for kind in MIX_EARLY}


def _save(
    out: Path,
    model: LlamaForCausalLM,
    optimizers: Sequence[torch.optim.Optimizer],
    at: Position,
    made_by: dict[str, object],
) -> None:
    """Write the model, what made it, and the state to go on from."""
    model.save_pretrained(out)
    facts = {"arguments": made_by, "trained": asdict(at), "torch": torch.__version__}
    (out / "pretraining.json").write_text(json.dumps(facts, indent=2) + "\n")
    states = [optimizer.state_dict() for optimizer in optimizers]
    torch.save(
        {"model": model.state_dict(), "optimizers": states, "at": asdict(at), "made_by": made_by},
        out / STATE_FILE,
    )


def _restore(
    file: Path, model: LlamaForCausalLM, optimizers: Sequence[torch.optim.Optimizer], made_by: dict[str, object]
) -> Position:
    """Load a training that was stopped, if there is one, and return how far it came.

    Raises:
        ValueError: It was started with other arguments.
    """
    if not file.exists():
        return Position()
    state = torch.load(file, weights_only=True)
    differing = [name for name, value in made_by.items() if state["made_by"].get(name) != value]
    if differing:
        raise ValueError(f"{file} was made with another {', '.join(differing)}: choose another folder, or delete it")
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return Position(**state["at"])


def new_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Return Muon for the layers' matrices and AdamW for embeddings and norms; rates are set at each step."""
    named = list(model.named_parameters())
    matrices = [weight for name, weight in named if weight.ndim == 2 and "embed" not in name]
    others = [weight for name, weight in named if weight.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def _step(model: LlamaForCausalLM, body: nn.Module, optimizers: Sequence[torch.optim.Optimizer], batch: Batch) -> float:
    learned = batch.is_learned[:, 1:]
    hidden = body(input_ids=batch.ids[:, :-1]).last_hidden_state[learned]  # (B, T, H) -> (learned, H)
    loss = cross_entropy(model.lm_head(hidden), batch.ids[:, 1:][learned])
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
    return float(loss.detach())


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    auto_cli(pretrain)
