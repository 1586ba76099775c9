"""What a decoder layer keeps for the backward pass, and what it holds while it computes.

The way of counting is that of Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models",
section 4: go through a layer and add up what the gradient of each operation needs. Their layer is GPT's, trained whole;
this is Llama's with adapters on a frozen base, as transformers, PEFT and PyTorch's autograd run it:

- A frozen matrix keeps no input: its gradient for the input needs the matrix alone. What keeps the input is the
  adapter's A, and each adapter keeps A's output, `rank` wide.
- A norm computes in fp32 and keeps its input so. Where the residual stream is in 16 bits, that is a copy.
- SiLU keeps its input, the product of gate and up keeps both factors: three times the MLP's width.
- Flash attention (Dao et al. 2022) keeps queries, keys, values, its output and one fp32 number for each query.
- A mixture of experts works on a row for each pair of token and expert. The router's weights need a gradient, as they
  come from the residual stream, so what they multiply, the experts' output, is kept.
- A mask, which padding needs, repeats keys and values for each query's head and is kept as floats of (time x time).

Widths are in numbers for each token; `benchmarks/plan.py` compares the sums with measured peaks.
"""

from __future__ import annotations

from resd_lightning.plan.run import Run
from resd_lightning.plan.shape import Experts, Linear


def kept_by_layer(run: Run, batch: int, time: int) -> int:
    """Return the bytes that one decoder layer keeps from its forward to its backward pass, without checkpointing."""
    tokens = batch * time
    return (
        tokens * (_kept_by_norms(run) + _kept_by_attention(run) + _kept_by_mlp(run))
        + tokens * sum(_kept_inputs(run).values())
        + _kept_squares(run, batch, time)
        + _kept_casts(run)
    )


def kept_by_stack(run: Run, batch: int, time: int) -> int:
    """Return the bytes that all layers keep when the forward pass has ended, and the mask they share.

    With gradient checkpointing (Chen et al. 2016) a layer keeps its input alone, and its backward pass first runs it
    again; `backward` has that.
    """
    each = _layer_input(run, batch, time) if run.policy.gradient_checkpointing else kept_by_layer(run, batch, time)
    return run.shape.layers * each + mask_bytes(run, batch, time)


def kept_by_last_norm(run: Run, batch: int, time: int) -> int:
    """Return the bytes of the last norm's input, in fp32, and of its output: both are gone before the layers' turn."""
    return batch * time * run.shape.hidden * (4 + run.stored_bytes)


def backward(run: Run, batch: int, time: int) -> int:
    """Return what the backward pass holds beside `kept_by_stack` at its height, in the layer it begins with.

    That is where the MLP's last matrix, `down`, sends its gradient back: the base's part, the adapter's part and their
    sum exist at once, after the input that A kept is gone. With checkpointing the layer's own activations come first,
    among which its input is there already where the norm needs no copy of it.
    """
    shape, tokens, width = run.shape, batch * time, run.compute_bytes
    if shape.experts is not None:
        down = tokens * shape.experts.per_token * run.stored_bytes * _experts_backward(shape.experts)
    else:
        down = tokens * shape.intermediate * (width + (4 if _casts_to_fp32(run) else width))
    gradient = _layer_input(run, batch, time)
    again = 0
    if run.policy.gradient_checkpointing:
        shared = _layer_input(run, batch, time) if run.stored_bytes == 4 else 0
        again = kept_by_layer(run, batch, time) - shared
    return again + down + gradient + (shape.widest * width if run.is_nf4 else 0)


def _experts_backward(experts: Experts) -> int:
    """Return the widest gradients of a row that exist at once, above what the row has kept, in numbers.

    First those of the experts' output: weighted, in the tokens' order, and not. Then those of SiLU's product and of
    both its factors, when the output that the weights multiplied is gone.
    """
    return max(3 * experts.hidden, 3 * experts.intermediate - experts.hidden)


def without_gradient(run: Run, batch: int, time: int) -> int:
    """Return what a forward pass without gradient holds at its height: one layer's work on all tokens.

    The largest of three places: a norm and its fp32 copies; attention, with queries and keys before and after their
    rotation (and norm); the MLP, where beside SiLU's output the base's `up`, the adapter's part and their sum exist, or
    half of that and the copy of a matrix; without an adapter, SiLU's output, `up` and their product. Around them the
    model holds the embeddings, and the layer's caller its input; then come the stream between attention and MLP, the
    output of a norm, and in an adapter its input in fp32.
    """
    shape, tokens, width = run.shape, batch * time, run.compute_bytes
    stream = shape.hidden * run.stored_bytes
    cast = 4 * shape.hidden if _casts_to_fp32(run) and run.stored_bytes < 4 else 0
    norm = tokens * (3 * stream + 2 * 4 * shape.hidden)
    turning = 3 * (4 if shape.has_head_norms else width) * shape.query
    attention = tokens * (3 * stream + width * (shape.query + 2 * shape.key) + turning)
    around = tokens * (4 * stream + cast)
    if shape.experts is not None:
        # What experts read; then gate and up, SiLU's output and the product, or what they write, weighted, in order.
        row = shape.hidden + max(4 * shape.experts.intermediate, 3 * shape.hidden)
        mlp = around + tokens * shape.experts.per_token * row * run.stored_bytes
    else:
        is_adapted = any(linear.rank > 0 for linear in shape.linears if linear.name == "up_proj")
        inside = (4 if is_adapted else 3) * tokens * width * shape.intermediate
        mlp = around + max(inside, inside // 2 + weight_copy(run))
    return max(norm, attention + _working_squares(run, batch, time), mlp) + mask_bytes(run, batch, time)


def weight_copy(run: Run) -> int:
    """Return the copy of a layer's largest matrix that exists while it is used: dequantized, or cast by autocast."""
    is_cast = run.is_mixed and run.stored_bytes == 4
    return run.shape.widest * run.compute_bytes if run.is_nf4 or is_cast else 0


def _layer_input(run: Run, batch: int, time: int) -> int:
    return batch * time * run.shape.hidden * run.stored_bytes


def mask_bytes(run: Run, batch: int, time: int) -> int:
    """Return the mask of (batch, time, time) bytes that padding needs, and eager attention always."""
    is_there = run.policy.attention == "eager" or (batch > 1 and run.policy.attention != "flash_attention_2")
    return batch * time * time if is_there else 0


def _kept_by_norms(run: Run) -> int:
    kept = 4 * run.shape.hidden_norms * run.shape.hidden
    if run.shape.has_head_norms:
        kept += 4 * (run.shape.query + run.shape.key)
    if run.policy.lora is None:  # the norm's own weight is trained: it keeps what it multiplies
        kept += 4 * run.shape.hidden_norms * run.shape.hidden
        kept += 4 * (run.shape.query + run.shape.key) if run.shape.has_head_norms else 0
    return kept


def _kept_by_attention(run: Run) -> int:
    shape = run.shape
    keys = shape.query if _has_mask(run) else shape.key
    return run.compute_bytes * (2 * shape.query + 2 * keys) + 4 * shape.heads


def _kept_by_mlp(run: Run) -> int:
    experts = run.shape.experts
    if experts is None:
        return 3 * run.compute_bytes * run.shape.intermediate
    rows = run.stored_bytes * (3 * experts.intermediate + experts.hidden) + 3 * 8  # and three lists of indices
    return experts.per_token * rows + 4 * experts.number  # and the router's softmax


def _kept_inputs(run: Run) -> dict[str, int]:
    """Return what is kept of the inputs of linear layers, in bytes for each token.

    A tensor that several of them read is kept once, unless each makes its own copy: PEFT casts the input to the
    adapter's fp32 and autocast back to 16 bits, and dropout makes another input for each adapter.
    """
    kept: dict[str, int] = {}
    for linear in run.shape.linears:
        if linear.rank == 0 and run.policy.lora is not None:
            continue
        is_copy, width = _input_copy(run, linear)
        rank = linear.rank * (run.compute_bytes if run.is_mixed or run.policy.lora is None else 4)
        dropout = linear.inputs if run.policy.lora is not None and run.policy.lora.dropout > 0 else 0
        # Attention keeps its output, which is what o_proj reads.
        source = linear.name if is_copy else _source(linear.name)
        size = 0 if source == "attention" else linear.inputs * width
        kept[source] = max(kept.get(source, 0), size)
        kept[f"{linear.name}.A"] = rank + dropout
    return kept


def _input_copy(run: Run, linear: Linear) -> tuple[bool, int]:
    """Return whether a linear layer keeps its own copy of its input, and the bytes of a number in what it keeps."""
    begins = run.stored_bytes if _source(linear.name).startswith("norm") else run.compute_bytes
    reads = 4 if _casts_to_fp32(run) else begins
    keeps = run.compute_bytes if run.is_mixed else reads
    drops = run.policy.lora is not None and run.policy.lora.dropout > 0
    return drops or not begins == reads == keeps, keeps


def _source(linear: str) -> str:
    """Return what a linear layer reads."""
    return {"o_proj": "attention", "down_proj": "product", "gate_proj": "norm 2", "up_proj": "norm 2"}.get(
        linear, "norm 1"
    )


def _casts_to_fp32(run: Run) -> bool:
    """Return whether PEFT casts an adapter's input to fp32; on 4-bit layers it leaves that to a GPU's autocast."""
    return run.policy.lora is not None and not (run.is_nf4 and run.is_mixed and run.device == "cuda")


def _has_mask(run: Run) -> bool:
    return run.is_padded and run.policy.attention != "flash_attention_2"


def _kept_squares(run: Run, batch: int, time: int) -> int:
    """Return what a layer keeps of (time x time): eager attention's probabilities, or the mask as floats."""
    if run.policy.attention == "eager":
        cast = run.compute_bytes if run.compute_bytes < 4 else 0
        return batch * run.shape.heads * time * time * (4 + cast)
    return run.compute_bytes * mask_bytes(run, batch, time)


def _working_squares(run: Run, batch: int, time: int) -> int:
    """Return what attention holds of (time x time) while it computes: eager's scores twice, or the mask as floats."""
    if run.policy.attention == "eager":
        return batch * run.shape.heads * time * time * 2 * 4
    return run.compute_bytes * mask_bytes(run, batch, time)


def _kept_casts(run: Run) -> int:
    """Return the 16-bit copies of a layer's frozen fp32 matrices, which their own gradient pass needs again."""
    is_cast = run.is_mixed and run.stored_bytes == 4 and not run.is_nf4 and run.policy.lora is not None
    return 2 * run.shape.layer_weights if is_cast else 0
