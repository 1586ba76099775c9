"""The language model: loading it, and seeing it as student, teacher or base."""
