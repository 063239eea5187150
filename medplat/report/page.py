"""One offline HTML page: styles, script and pictures inside, nothing asked from outside.

Templates extend `page.html`; every text is escaped. The content policy names the page's own style
and script by hash and forbids everything else, so even a hostile text could load nothing.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import medplat
from medplat import paths

if TYPE_CHECKING:
    from jinja2 import Environment

_TEMPLATES = Path(__file__).parent / "templates"
ROWS_A_PAGE = 200


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # 50 ms that `--help` saves.

    return Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _part(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
    return f"'sha256-{digest}'"


def _policy() -> str:
    return (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src {_source(_part('page.css'))}; script-src {_source(_part('page.js'))}"
    )


def prepare(template: str) -> None:
    """Compile a template: what its first `render` would spend most of its time on."""
    _environment().get_template(template)


def render(template: str, context: Mapping[str, Any]) -> str:
    """Fill a template of this package.

    Args:
        template: File name, such as "convert.html"; it extends "page.html".
        context: Its values. Text is escaped; only `markupsafe.Markup` made by this package is not.

    Returns:
        The whole page.
    """
    from markupsafe import Markup

    return (
        _environment()
        .get_template(template)
        .render(
            context,
            policy=_policy(),
            style=Markup(_part("page.css")),
            script=Markup(_part("page.js")),
            version=medplat.__version__,
        )
    )


def write(path: Path, text: str) -> None:
    """Write a page: all of it or nothing."""
    with paths.whole(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def write_pages(
    path: Path, template: str, rows: Sequence[Any], context: Mapping[str, Any]
) -> list[Path]:
    """Write a report of many rows as `report.html`, `report-2.html` and so on, 200 rows each.

    Args:
        path: The first page.
        template: Gets `rows` (those of its page), `pages` (name, first, last, here) and `context`.
        rows: All rows, in order.
        context: Further values.

    Returns:
        The pages written; pages of an earlier, longer report are deleted.
    """
    starts = range(0, max(len(rows), 1), ROWS_A_PAGE)
    names = [
        path.name if i == 0 else f"{path.stem}-{i + 1}{path.suffix}" for i in range(len(starts))
    ]
    for i, start in enumerate(starts):
        pages = [
            {
                "name": name,
                "first": first + 1,
                "last": min(first + ROWS_A_PAGE, len(rows)),
                "here": name == names[i],
            }
            for name, first in zip(names, starts, strict=True)
        ]
        some = rows[start : start + ROWS_A_PAGE]
        write(path.with_name(names[i]), render(template, {**context, "rows": some, "pages": pages}))
    for old in path.parent.glob(f"{path.stem}-*{path.suffix}"):
        if old.stem.removeprefix(f"{path.stem}-").isdigit() and old.name not in names:
            old.unlink()
    return [path.with_name(name) for name in names]
