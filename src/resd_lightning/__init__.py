"""RESD: language models that learn from rich feedback when success is rare."""
