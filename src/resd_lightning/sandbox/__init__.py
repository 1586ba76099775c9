"""Runs model-written Python apart from this process, and brings back what it did as data."""

from resd_lightning.sandbox.pool import Sandbox
from resd_lightning.sandbox.program import CallOutcome, Ended, Limits, Program, SandboxResult

__all__ = ["CallOutcome", "Ended", "Limits", "Program", "Sandbox", "SandboxResult"]
