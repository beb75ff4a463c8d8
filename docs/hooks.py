"""What mkdocs fills in: every sentence of an error, files of the root, and links of docstrings."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
ROLE = re.compile(r":(?:class|func|meth|mod|data|attr):<code>~?([^<]+)</code>")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in ``<!-- sentences -->`` and ``<!-- include FILE -->``."""
    markdown = re.sub(r"<!-- include (\S+) -->", lambda found: _file(found[1]), markdown)
    return markdown.replace("<!-- sentences -->", sentences()) if "<!-- sentences -->" in markdown else markdown


def on_page_content(html: str, **_: Any) -> str:
    """Show a role of a docstring as the last part of its name."""
    return ROLE.sub(lambda found: f"<code>{found[1].rpartition('.')[2]}</code>", html)


def _file(name: str) -> str:
    """A file of the root without its title; links lead to the pages of this site."""
    text = (ROOT / name).read_text().partition("\n")[2]
    return re.sub(r"\]\(docs/", "](", text)


def sentences() -> str:
    """Every sentence with which the package refuses something, by the room that says it.

    Example:
        >>> "could not be read" in sentences() or "has no hidden width" in sentences()
        True
    """
    rooms: dict[str, list[str]] = {}
    for path in sorted((ROOT / "fpe_lightning").rglob("*.py")):
        parts = path.relative_to(ROOT / "fpe_lightning").with_suffix("").parts
        rooms.setdefault(parts[0], []).extend(_raised(ast.parse(path.read_text())))
    lines = []
    for room, found in rooms.items():
        if found:
            lines += ["", f"### {room}", ""] + [f"- {text}" for text in dict.fromkeys(found)]
    return "\n".join(lines)


def _raised(tree: ast.AST) -> Iterator[str]:
    """The text of each exception that is raised with one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            text = _text(node.exc.args[0])
            if " " in text.strip():
                # Markdown leaves code as it is; outside of it, these signs would be markup.
                yield "`".join(
                    re.sub(r"([<>*_])", r"\\\1", part) if n % 2 == 0 else part for n, part in enumerate(text.split("`"))
                )


def _text(node: ast.expr) -> str:
    """A string, with the expressions of an f-string in braces by their last name."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        names = [
            each.attr if isinstance(each, ast.Attribute) else each.id
            for each in ast.walk(node.value)
            if isinstance(each, (ast.Attribute, ast.Name))
        ]
        names = [name for name in names if not name.startswith("__")]
        return f"{{{names[0] if names else '...'}}}"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    if isinstance(node, ast.IfExp):
        return _text(node.body)
    return ""
