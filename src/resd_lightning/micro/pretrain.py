"""`python -m resd_lightning.micro.pretrain`: makes micro-lm from nothing, seeded, and says what it can do."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
MIX_EARLY = {
    "repeat": 0.25,
    "answer_alone": 0.05,
    "answer_from_book": 0.3,
    "answer_in_context": 0.12,
    "reflect": 0.14,
    "tag": 0.06,
    "curate": 0.08,
}
MIX_LATE = {
    "repeat": 0.04,
    "answer_alone": 0.05,
    "answer_from_book": 0.28,
    "answer_in_context": 0.2,
    "reflect": 0.2,
    "tag": 0.09,
    "curate": 0.14,
}


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
    total_tokens: int = 30_000_000,
    learning_rate: float = 2.5e-3,
    batch_tokens: int = 4_096,
    hidden: int = 128,
    layers: int = 4,
    heads: int = 4,
    warm_up_share: float = 0.02,
    compile_model: bool = False,
) -> None:
    """Train micro-lm and write it, with its tokenizer, as a Hugging Face folder.

    Playbooks grow from 4 to 64 entries over the first 60 % of the tokens, and the share of documents that only repeat
    words falls; the rate decays by a cosine after a warm-up. Every two minutes the training state is saved beside the
    model: the same command goes on from it.

    Args:
        out: Folder to write.
        seed: Seed of weights and documents.
        total_tokens: Tokens to train on, padding included.
        learning_rate: Peak rate of AdamW.
        batch_tokens: Tokens per step.
        hidden: Width.
        layers: Depth.
        heads: Attention heads.
        warm_up_share: Share of the tokens over which the rate rises.
        compile_model: Run through torch.compile: 1.4 times as fast on two cores, and needs a C++ compiler.
    """
    torch.manual_seed(seed)
    tokenizer = micro_tokenizer()
    model = new_model(tokenizer, hidden, layers, heads)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    writer = DocumentWriter(random.Random(f"micro-lm {seed}"))
    state_file = out / "training_state.pt"
    done, pools, step = 0, 0, 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done, pools, step = state["done"], state["pools"], state["step"]
    forward = cast("nn.Module", torch.compile(model, dynamic=True)) if compile_model else model
    saved_at = time.monotonic()
    while done < total_tokens:
        progress = done / total_tokens
        writer.rng.seed(f"micro-lm {seed} pool {pools}")
        writer.max_entries = min(64, 4 + int(60 * progress / 0.6))
        mix = {kind: MIX_EARLY[kind] * (1 - progress) + MIX_LATE[kind] * progress for kind in MIX_EARLY}
        losses = []
        for batch in batches(writer, tokenizer, mix, batch_tokens):
            share = done / total_tokens
            rate = learning_rate * min(1.0, share / warm_up_share) * (0.02 + 0.98 * (1 + math.cos(math.pi * share)) / 2)
            for group in optimizer.param_groups:
                group["lr"] = max(rate, 1e-6)
            losses.append(_step(forward, optimizer, batch))
            done += batch.ids.numel()
            step += 1
        pools += 1
        logger.info("%9d tokens, %d entries, loss %.4f", done, writer.max_entries, sum(losses) / len(losses))
        if time.monotonic() - saved_at > 120 or done >= total_tokens:
            saved_at = time.monotonic()
            out.mkdir(parents=True, exist_ok=True)
            model.save_pretrained(out)
            tokenizer.save_pretrained(out)
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "done": done, "pools": pools, "step": step}, state_file)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> float:
    logits = model(input_ids=batch.ids[:, :-1]).logits
    learned = batch.is_learned[:, 1:]
    loss = cross_entropy(logits[learned], batch.ids[:, 1:][learned])  # (B, T, V) -> (learned, V)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    auto_cli(pretrain)
