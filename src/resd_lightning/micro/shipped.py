"""Where the package keeps micro-lm's weights: `model.policy.base: micro-lm` means this folder."""

from __future__ import annotations

from pathlib import Path

MICRO_LM = "micro-lm"
FOLDER = Path(__file__).resolve().parent / "model"
