from __future__ import annotations

import pytest

from resd_lightning.tasks.fences import Block, fenced_blocks


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("no fence", []),
        ("```\na\n```", [Block("", "a", True)]),
        ("```\n\n```\n```python\n \n```", []),
        (
            "see\n```Python title=x\na\n\nb\n````\nand\n```{sh}\nc",
            [Block("python", "a\n\nb", True), Block("", "c", False)],
        ),
        ("```python\na\n```sh\nb\n```", [Block("python", "a", False), Block("sh", "b", True)]),
        ("1. See:\n    ```py\n    if a:\n        b\n\n    ```", [Block("py", "if a:\n    b\n", True)]),
        ("  ```\n    a\n b\n```", [Block("", "  a\n b", True)]),
        ("``` \na``` b\n ```\t", [Block("", "a``` b", True)]),
    ],
)
def test_blocks_come_with_their_language_and_without_their_fences(text: str, blocks: list[Block]) -> None:
    assert fenced_blocks(text) == blocks
