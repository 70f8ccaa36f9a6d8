"""Settings of the documentation site, which Sphinx builds from the pages that a Git host shows too: `make site`.

The repository is the source directory, so that a link from one page to another, or to a file, is the same in both places.
Parts that only the site needs are added while a page is read: the contents in the sidebar, and the reference of a module.
"""  # noqa: INP001  # a script beside pages

from __future__ import annotations

import re
import shutil
import tomllib
from collections.abc import Iterable
from pathlib import Path

import msgspec
from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent
_SECTION = re.compile(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", re.DOTALL | re.MULTILINE)
_PAGE = re.compile(r"\]\((?!https?:)([^)#]+)\.md\)")
_MODULE = re.compile(r"<!-- autodoc: ([\w.]+) -->")

project = "Inbox Relay"
version = release = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
root_doc = "README"
include_patterns = ["*.md", "docs/**.md", "benchmarks/README.md"]
exclude_patterns = [path.name for path in ROOT.iterdir() if path.is_dir() and path.name not in {"docs", "benchmarks"}]
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!relay\.handler).*")
]  # no look at other projects' sites: the build needs no network

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
smartquotes = False  # `--yes` stays as it is typed
myst_heading_anchors = 6
myst_enable_extensions = ["html_image"]
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"

suppress_warnings = [
    "misc.highlighting_failure"
]  # "POST /contacts" is not a whole HTTP message, and is highlighted all the same

html_theme = "furo"
html_title = f"{project} {version}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False


def setup(app: Sphinx) -> None:
    """Register the hooks; Sphinx calls this once, before it reads the first page."""
    app.connect("source-read", _add_parts_of_the_site)
    app.connect("autodoc-process-signature", _list_fields_once)
    app.connect("build-finished", _name_the_first_page)
    app.add_lexer("caddyfile", TextLexer)  # Pygments has none


def _add_parts_of_the_site(_: Sphinx, page: str, source: list[str]) -> None:
    """Complete the text of a page, the only item of `source`: a hook of Sphinx."""
    if page == root_doc:
        source[0] += contents((ROOT / "docs" / "README.md").read_text(encoding="utf-8"))
    if page == "docs/how-to/runbooks/README":
        source[0] += _toctree("Runbooks", sorted(set(re.findall(r"\]\(([\w-]+)\.md\)", source[0]))))
    source[0] = _MODULE.sub("```{eval-rst}\n.. automodule:: \\1\n   :members:\n   :undoc-members:\n```", source[0])


def contents(index: str) -> str:
    """Return a table of contents for each section of docs/README.md, with the pages that it links to, in its order."""
    listed = {name: [f"docs/{page}" for page in _PAGE.findall(text)] for name, text in _SECTION.findall(index)}
    listed["Project"] = ["docs/README", "benchmarks/README", "CHANGELOG", "CONTRIBUTING", "SECURITY"]
    return "".join(_toctree(name, pages) for name, pages in listed.items())


def _toctree(name: str, pages: Iterable[str]) -> str:
    return "\n```{toctree}\n:hidden:\n:caption: " + "\n".join([name, *dict.fromkeys(pages)]) + "\n```\n"


def _list_fields_once(
    _: Sphinx, _kind: str, _name: str, described: object, _options: object, _signature: str, _returns: str
) -> tuple[str, str] | None:
    """Drop the signature of a struct, which would repeat the fields that follow: a hook of Sphinx."""
    return ("", "") if isinstance(described, type) and issubclass(described, msgspec.Struct) else None


def _name_the_first_page(app: Sphinx, failure: Exception | None) -> None:
    """Copy the first page to index.html, which web servers look for: a hook of Sphinx after the build."""
    if failure is None and app.builder.format == "html":
        shutil.copyfile(app.outdir / f"{root_doc}.html", app.outdir / "index.html")
