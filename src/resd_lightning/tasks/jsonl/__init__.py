"""A task out of a user's JSON lines: prompts, right answers, and how to compare."""

from resd_lightning.tasks.jsonl.task import JsonlTask

__all__ = ["JsonlTask"]
