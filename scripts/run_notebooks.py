"""Runs notebooks where they stand and keeps their outputs: `python scripts/run_notebooks.py NOTEBOOK ...`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
SHOWN = ("image/png", "text/plain")
"""Kinds of output that are kept; of a rich table its text is enough."""


def executed(notebook: nbformat.NotebookNode, folder: Path, timeout_s: int = 600) -> nbformat.NotebookNode:
    """Return a notebook with the outputs of its cells, run from top to bottom in `folder`.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell raises.
    """
    folder_of_kernel = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=timeout_s, coalesce_streams=True, resources=folder_of_kernel).execute()
    return notebook


def cleaned(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return a notebook whose file doesn't say when and where it ran; standard error, libraries' talk, is left out."""
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number:02d}", {}
        if cell.cell_type != "code":
            continue
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            if "data" in output:
                output.data = {kind: value for kind, value in output.data.items() if kind in SHOWN}
                output.metadata = {}
    notebook.metadata = METADATA
    return notebook


def main() -> None:
    """Run each, in order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", type=Path, nargs="+", metavar="NOTEBOOK", help="an .ipynb file")
    for path in parser.parse_args().notebooks:
        started = time.perf_counter()
        notebook = executed(nbformat.read(path, as_version=4), path.parent)
        nbformat.write(cleaned(notebook), path)
        print(f"{path}: {time.perf_counter() - started:.0f} s, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
