"""Measures the distillation loss: peak memory and time of one forward and backward pass, and the tail's error in fp32.

    python benchmarks/loss.py --out benchmarks/results/loss_cpu.json
    python benchmarks/loss.py --device cuda --dtype bfloat16 --vocab 151936 --hidden 2560 --tokens 2048 8192 20480

From hidden states to their gradient, with a frozen output head. Each case runs in a process of its own: once to warm up
(and to compile), then for its peak, which is what it holds above the inputs and the head, and its time, of which the
least counts. On a CPU that is the processor's time, so that other work on the machine matters less. The extra `bench`
has the peers; those that aren't installed are left out. `full vocabulary` is another objective: it compares all tokens,
where the others compare `top_k` and a tail. `--out` keeps what an earlier call with the same settings wrote there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from measuring import cost, run_apart
from torch import Tensor

from resd_lightning.compare.launch import cpu
from resd_lightning.distill.divergence import distillation_loss
from resd_lightning.distill.fused import fused_distillation_loss

Loss = Callable[[Tensor, Tensor, Tensor, argparse.Namespace], Tensor]
"""From hidden states of student and teacher (token, hidden), the head (vocab, hidden) and the options to a mean."""


def fused(student: Tensor, teacher: Tensor, head: Tensor, options: argparse.Namespace) -> Tensor:
    """Return this package's loss in chunks."""
    mask = torch.ones(1, len(student), dtype=torch.bool, device=student.device)
    settings = {"alpha": options.alpha, "top_k": options.top_k, "chunk_tokens": options.chunk_tokens}
    return fused_distillation_loss(student[None], head, teacher[None], head, mask, **settings).loss


def plain(student: Tensor, teacher: Tensor, head: Tensor, options: argparse.Namespace) -> Tensor:
    """Return this package's definition, on all logits."""
    mask = torch.ones(1, len(student), dtype=torch.bool, device=student.device)
    with torch.no_grad():
        teacher_logits = teacher[None] @ head.T
    return distillation_loss(
        student[None] @ head.T, teacher_logits, mask, alpha=options.alpha, top_k=options.top_k
    ).loss


def trl_top_k(student: Tensor, teacher: Tensor, head: Tensor, options: argparse.Namespace) -> Tensor:
    """Return TRL's top-k loss of its SDPO trainer, on all logits."""
    from trl.experimental.sdpo.loss_utils import compute_topk_self_distillation_loss

    with torch.no_grad():
        teacher_logits = teacher @ head.T
    return compute_topk_self_distillation_loss(
        student @ head.T,
        teacher_logits,
        distillation_topk=options.top_k,
        distillation_alpha=options.alpha,
        distillation_add_tail=True,
    ).mean()


def trl_chunked(student: Tensor, teacher: Tensor, head: Tensor, options: argparse.Namespace) -> Tensor:
    """Return TRL's loss of its distillation trainer, over the whole vocabulary in tiles of its own size."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    divergence, _ = ChunkedDivergenceFunction.apply(student, head, None, teacher, head, None, options.alpha)
    return divergence.mean()


def liger(student: Tensor, teacher: Tensor, head: Tensor, options: argparse.Namespace, *, compiled: bool) -> Tensor:
    """Return Liger's fused linear JSD, over the whole vocabulary in chunks; it also makes a gradient for the head."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0,
        weight_soft_loss=1.0,
        beta=options.alpha,
        compiled=compiled,
        chunk_size=options.chunk_tokens,
    )
    return loss(student, head, teacher, head, torch.zeros(len(student), dtype=torch.long, device=student.device))


def liger_eager(student: Tensor, teacher: Tensor, head: Tensor, options: argparse.Namespace) -> Tensor:
    """Return Liger's loss without compiling it."""
    return liger(student, teacher, head, options, compiled=False)


def liger_compiled(student: Tensor, teacher: Tensor, head: Tensor, options: argparse.Namespace) -> Tensor:
    """Return Liger's loss as it is by default."""
    return liger(student, teacher, head, options, compiled=True)


CASES: dict[str, tuple[Loss, str, str | None]] = {
    "fused": (fused, "this, fused", None),
    "plain": (plain, "this, plain", None),
    "trl_top_k": (trl_top_k, "TRL top-k", "trl"),
    "liger_compiled": (liger_compiled, "Liger, compiled, full vocabulary", "liger_kernel"),
    "liger_eager": (liger_eager, "Liger, eager, full vocabulary", "liger_kernel"),
    "trl_chunked": (trl_chunked, "TRL chunked, full vocabulary", "trl"),
}
"""Each with its name in the table and the package that it needs."""


PACKAGES = {"torch": "torch", "trl": "trl", "liger-kernel": "liger_kernel"}
"""Whose versions are kept, with the modules they bring."""


def measure(name: str, tokens: int, options: argparse.Namespace) -> dict[str, object]:
    """Run one case in this process and return its numbers."""
    torch.set_num_threads(options.threads)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    torch.manual_seed(0)
    shapes = ((tokens, options.hidden), (tokens, options.hidden), (options.vocab, options.hidden))
    student, teacher, head = (torch.randn(shape).to(device, dtype) for shape in shapes)
    head.mul_(4 * options.hidden**-0.5)  # logits with a standard deviation of 4: the top 100 hold most of the mass
    student.requires_grad_()
    loss = CASES[name][0]
    result: dict[str, object] = {"case": name, "tokens": tokens}

    def work() -> None:
        student.grad = None
        value = loss(student, teacher, head, options)
        value.backward()
        result["loss"] = float(value.detach())

    costs = []
    for _ in range(options.repeats + 1):
        student.grad = None
        costs.append(cost(work, device))
    peaks, seconds = zip(*costs[1:], strict=True)  # the first is the warm-up
    return result | {"peak_mib": round(max(peaks), 1), "seconds": round(min(seconds), 3)}


def measure_apart(name: str, tokens: int, arguments: list[str]) -> dict[str, object]:
    """Run one case in a process of its own."""
    return run_apart(__file__, [*arguments, "--tokens", str(tokens), "--case", name])


def tail_errors(options: argparse.Namespace) -> list[dict[str, float]]:
    """Return the largest error of the student's log tail in fp32, in nats, by the tail's mass."""
    vocab, tokens, top_k = 2000, 64, 100
    head, mask = torch.eye(vocab), torch.ones(1, tokens, dtype=torch.bool)
    teacher = torch.zeros(1, tokens, vocab)  # forward KL to a teacher that is all tail is -log of the student's tail
    teacher[..., :top_k] = -1000.0
    settings = {"alpha": 0.0, "top_k": top_k}
    rows = []
    for mass in (1e-1, 1e-3, 1e-5, 1e-6, 1e-7, 1e-9):
        student = torch.randn(1, tokens, vocab, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        top, rest = student[..., :top_k].logsumexp(-1), student[..., top_k:].logsumexp(-1)
        student[..., top_k:] += (top - rest + torch.tensor(mass / (1 - mass)).log()).unsqueeze(-1)
        student = student.float()
        exact = fused_distillation_loss(
            student.double(), head.double(), teacher.double(), head.double(), mask, **settings
        ).per_token
        errors = {
            "fused": fused_distillation_loss(student, head, teacher, head, mask, **settings).per_token - exact,
            "plain": distillation_loss(student, teacher, mask, **settings).per_token - exact,
        }
        rows.append({"tail_mass": mass} | {name: float(error.abs().max()) for name, error in errors.items()})
    return rows


def table(results: list[dict[str, object]]) -> str:
    """Return the results as a table, with the ratios to the fused loss of the same number of tokens."""
    lines = ["| tokens | loss | peak MiB | seconds | memory | time |", "|---|---|---|---|---|---|"]
    fused_ones = {result["tokens"]: result for result in results if result["case"] == "fused"}
    for result in results:
        ours = fused_ones[result["tokens"]]
        ratios = [float(result[key]) / float(ours[key]) for key in ("peak_mib", "seconds")]
        numbers = f"{result['peak_mib']:.0f} | {result['seconds']:.2f} | {ratios[0]:.1f} | {ratios[1]:.2f}"
        lines.append(f"| {result['tokens']} | {CASES[str(result['case'])][1]} | {numbers} |")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, run every case, write and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--vocab", type=int, default=32768)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--top_k", type=int, default=100)
    parser.add_argument("--alpha", type=float, default=0.5)
    parser.add_argument("--chunk_tokens", type=int, default=256, help="ours and Liger's; TRL's is its own")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--case", choices=list(CASES), help="measure this one here, and print its numbers")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    if options.case is not None:
        print(json.dumps(measure(options.case, options.tokens[0], options)))
        return
    names = [name for name in options.cases if CASES[name][2] is None or find_spec(CASES[name][2]) is not None]
    print("left out, not installed:", ", ".join(sorted(set(options.cases) - set(names))) or "nothing")
    report = {
        "settings": {
            key: value for key, value in vars(options).items() if key not in ("tokens", "cases", "case", "out")
        },
        "machine": {
            "cpu": cpu(),
            "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if options.device == "cuda" else None,
        },
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package, module in PACKAGES.items() if find_spec(module) is not None},
        "tail_error_nats": tail_errors(options),
    }
    earlier = json.loads(options.out.read_text()) if options.out is not None and options.out.exists() else {}
    is_the_same = all(earlier.get(key) == report[key] for key in ("settings", "machine", "versions"))
    done = {(result["tokens"], result["case"]): result for result in earlier["cases"]} if is_the_same else {}
    for tokens in options.tokens:
        for name in names:
            if (tokens, name) not in done:
                done[tokens, name] = measure_apart(name, tokens, sys.argv[1:])
            print(done[tokens, name], flush=True)
            if options.out is not None:
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(json.dumps(report | {"cases": list(done.values())}, indent=1) + "\n")
    print(table(list(done.values())))
    for row in report["tail_error_nats"]:
        print(row)


if __name__ == "__main__":
    main()
