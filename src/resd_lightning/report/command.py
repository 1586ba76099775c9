"""`resd report`: from run folders to one HTML file."""

from __future__ import annotations

import logging
from pathlib import Path

from resd_lightning.config import ConfigError
from resd_lightning.report.collect import Page, collect
from resd_lightning.report.write import page_text
from resd_lightning.run_folder import replace_text

logger = logging.getLogger(__name__)


def report(runs: list[str], out: str | None = None, max_chars: int = 6000) -> None:
    """Write one HTML file about one run or several: curves, playbook, rollouts, costs. It needs no network.

    Args:
        runs: Folders of runs.
        out: File to write, replacing an earlier one; null is report.html in the first run's folder.
        max_chars: Longest text of a response, feedback or answer; of a longer one the middle is left out.

    Raises:
        ConfigError: A folder holds no run, a folder is named twice, a file of it is broken, or out can't be written.
    """
    if max_chars < 2:
        raise ConfigError(f"--max_chars must be at least 2, got {max_chars}")
    folders = [Path(run) for run in runs]
    for folder in folders:
        if folders.count(folder) > 1:
            raise ConfigError(f"{folder} is named twice")
    target = folders[0] / "report.html" if out is None else Path(out)
    if target.is_dir() or (out is not None and not target.parent.is_dir()):
        raise ConfigError(f"--out {target}: " + ("it is a folder" if target.is_dir() else f"no folder {target.parent}"))
    page: Page = collect(folders, max_chars)
    for run in page.runs:
        if missing := run["missing"]:
            logger.warning("%s lacks %s: the report does without", run["name"], ", ".join(missing))
    replace_text(target, page_text(page))
    logger.info("wrote %s, %.1f MB", target, target.stat().st_size / 1e6)
