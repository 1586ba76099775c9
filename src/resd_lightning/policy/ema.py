"""The teacher's weights as an exponential moving average of the student's (RESD Alg. 1 line 19).

The average is kept in fp32 whatever precision the model computes in: at the paper's rate of 1e-4 a bf16 average would
round every step away and never move.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from resd_lightning.policy.shard import copy_whole, whole

Weights = Mapping[str, Tensor]


class ExponentialMovingAverage:
    """An fp32 average of named student weights, written into the teacher's weights after each step.

    The student's and the teacher's tensors are read by name, so the two mappings must have the same keys.

    Args:
        student: The trained weights.
        teacher: The weights the teacher computes with; where they are fp32 they hold the average themselves.
        rate: Step toward the student, in [0, 1]: 1 copies it, 0 never moves.
    """

    def __init__(self, student: Weights, teacher: Weights, rate: float) -> None:
        if student.keys() != teacher.keys():
            raise ValueError(f"student and teacher weights differ in names: {sorted(student.keys() ^ teacher.keys())}")
        self.rate = rate
        self._student = dict(student)
        self._teacher = dict(teacher)
        self._average = {n: t if t.dtype == torch.float32 else t.detach().float() for n, t in self._teacher.items()}

    @torch.no_grad()
    def step(self) -> None:
        """Move the average toward the student by `rate` and hand it to the teacher."""
        average = list(self._average.values())
        torch._foreach_lerp_(average, [self._student[name].detach().float() for name in self._average], self.rate)
        self._write_teacher()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the fp32 average by name, detached and not copied; sharded where the weights are."""
        return {name: tensor.detach() for name, tensor in self._average.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Weights) -> None:
        """Restore the average and the teacher's weights.

        Raises:
            KeyError: The state lacks a weight.
        """
        for name, tensor in self._average.items():
            copy_whole(tensor, state[name])
        self._write_teacher()

    @torch.no_grad()
    def distance(self) -> float:
        """Return the L2 distance between the average and the student, relative to the student's norm."""
        student = [tensor.detach().float() for tensor in self._student.values()]
        gaps = torch._foreach_sub(student, list(self._average.values()))
        return float(_total_norm(gaps) / _total_norm(student).clamp_min(1e-12))

    def _write_teacher(self) -> None:
        for name, tensor in self._average.items():
            if tensor is not self._teacher[name]:
                self._teacher[name].copy_(tensor)


def _total_norm(tensors: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """Return the L2 norm over all tensors, sharded ones over all ranks."""
    norms: tuple[Tensor, ...] = torch._foreach_norm(tensors)
    total: Tensor = torch.stack([whole(norm) for norm in norms]).norm()
    return total
