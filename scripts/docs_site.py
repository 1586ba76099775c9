"""What mkdocs does beside building the pages of docs/: API pages, files from outside docs/, formulas.

A hook of mkdocs.yml. Pages are written for a reader of the repository too, and link to files where they lie there. In
the site a link out of docs/ leads to a copy of the file.
"""

from __future__ import annotations

import ast
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

logger = logging.getLogger("mkdocs.hooks.docs_site")  # what is warned of under this name fails a strict build

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "resd_lightning"
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)(#[^)\s]*)?(?=\))")
FENCED = re.compile(r"^(```.*?^```$)", re.DOTALL | re.MULTILINE)
FORMULA = r"(?<![\\$\w])\$(?![\s$])([^$\n]+?)(?<!\s)\$(?![\w$])"
LANGUAGES = {".py": "python", ".yaml": "yaml", ".cff": "yaml"}


# The API: one page for each folder of the package, and one for the modules beside them


def api_pages() -> dict[str, list[str]]:
    """Return the page of each folder by its name, with the public modules that it documents."""
    pages: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[-1] == "__main__" or (parts[-1] == "__init__" and not _exports(path)):
            continue
        folder = "the_run" if len(parts) == 1 else parts[0]
        name = ".".join(("resd_lightning", *(part for part in parts if part != "__init__")))
        pages.setdefault(folder, []).append(name)
    return {folder: pages[folder] for folder in ("the_run", *sorted(pages.keys() - {"the_run"}))}


def _exports(path: Path) -> bool:
    """Return whether a package's own file defines anything."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree.body)


def api_page(folder: str, modules: list[str]) -> str:
    """Return a page that mkdocstrings fills from docstrings."""
    if folder == "the_run":
        heading, said = "The run", "Settings, records, module, datamodule, and the command line."
    else:
        heading = folder
        said = ast.get_docstring(ast.parse((PACKAGE / folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    return "\n\n".join([f"# {heading}", said, *(f"::: {module}" for module in modules)]) + "\n"


# Files from outside docs/


def links(text: str) -> Iterator[str]:
    """Yield the files that a page links to, as they are written; examples in fences are none."""
    for part in FENCED.split(text):
        if not part.startswith("```"):
            yield from (match[1] for match in LINK.finditer(part))


def target(source: Path, link: str) -> Path | None:
    """Return the file that a link of a file means, or None where it leads to none of this repository."""
    path = (ROOT / source.parent / link).resolve()
    if path.is_dir():
        path = path / "README.md"
    return path.relative_to(ROOT) if path.is_file() and path.is_relative_to(ROOT) else None


def place(path: Path) -> str:
    """Return where a file of the repository is in the site's sources."""
    if path.parts[0] == "docs":
        return path.relative_to("docs").as_posix()
    is_shown = path.suffix in LANGUAGES or path.suffix == ""
    return f"files/{path.as_posix()}{'.md' if is_shown else ''}"


def as_page(path: Path) -> str:
    """Return a file's content as a page: Markdown as it is, anything else in a fence."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    return f"# `{path.as_posix()}`\n\n````{LANGUAGES.get(path.suffix, 'text')}\n{text}````\n"


def source_of(src_uri: str) -> Path:
    """Return the file of the repository that a page was made of."""
    if not src_uri.startswith("files/"):
        return Path("docs") / src_uri
    path = Path(src_uri.removeprefix("files/"))
    return path if (ROOT / path).is_file() else path.with_suffix("")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the API, and every file that a page links to, and what those link to."""
    for folder, modules in api_pages().items():
        files.append(File.generated(config, f"api/{folder}.md", content=api_page(folder, modules)))
    waiting = [Path("docs") / file.src_uri for file in files.documentation_pages() if file.generated_by is None]
    while waiting:
        source = waiting.pop()
        for link in links((ROOT / source).read_text(encoding="utf-8")):
            path = target(source, link)
            if path is None or files.get_file_from_path(place(path)) is not None:
                continue  # a link to nothing is warned of by mkdocs
            if place(path).endswith(".md"):
                files.append(File.generated(config, place(path), content=as_page(path)))
                waiting += [path] if path.suffix == ".md" else []
            else:
                files.append(File.generated(config, place(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links lead to where their files are in the site."""
    if page.file.src_uri.startswith("api/"):
        return markdown
    source = source_of(page.file.src_uri)

    def led(match: re.Match[str]) -> str:
        path = target(source, match[1])
        if path is None:
            return match[0]
        return os.path.relpath(place(path), os.path.dirname(page.file.src_uri) or ".") + (match[2] or "")

    parts = FENCED.split(markdown)
    return "".join(part if part.startswith("```") else LINK.sub(led, part) for part in parts)


# Formulas, as MathML that the browser draws: no script, no font, nothing fetched


class Formula(InlineProcessor):
    """A formula between dollar signs."""

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[Element | str, int, int]:
        """Return the formula, and where it stood."""
        return self.md.htmlStash.store(convert(m[1])), m.start(0), m.end(0)


class Formulas(Extension):
    """Makes `$...$` formulas."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Put formulas behind code, which may hold dollar signs, and before everything that reads underscores."""
        md.inlinePatterns.register(Formula(FORMULA, md), "formula", 185)


def formula_block(source: str, *_: object, **__: object) -> str:
    """Return a formula in a line of its own, from a fence named math."""
    return f'<div class="formula">{convert(source.strip(), display="block")}</div>'


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add formulas, and the API to the navigation."""
    config.markdown_extensions.append(Formulas())
    fence = {"name": "math", "class": "formula", "format": formula_block}
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    config.nav.append({"API": [{_title(folder): f"api/{folder}.md"} for folder in api_pages()]})
    return config


def _title(folder: str) -> str:
    return "the run" if folder == "the_run" else folder
