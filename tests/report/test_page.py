from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from medplat.report import page

HOSTILE = '<script>alert(1)</script> "quoted" <img src="//evil.example/x.png">'


class Found(HTMLParser):
    """Every attribute that could ask for something, and the text of styles and scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, str]] = []
        self.meta: list[dict[str, str | None]] = []
        self.tags: list[str] = []
        self.inside: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "meta":
            self.meta.append(dict(attrs))
        for name, value in attrs:
            assert not name.startswith("on")
            assert name != "style"
            if name in ("src", "href", "srcset", "action", "data", "poster", "background"):
                self.asked.append((tag, value or ""))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] in ("style", "script"):
            self.inside[self.tags[-1]] = self.inside.get(self.tags[-1], "") + data

    def handle_endtag(self, tag: str) -> None:
        self.tags.append("/" + tag)


def context(**more: Any) -> dict[str, Any]:
    files = {"found": 3, "used": 1, "skipped": 1, "rejected": 1, "missing": 0}
    row = {
        "status": "rejected",
        "rank": 1,
        "case": "case-a",
        "patient": "patient-a",
        "stack": "0001_abcdef",
        "description": HOSTILE,
        "modality": "MR",
        "n_files": 3,
        "pictures": [],
        "triptych": None,
        "views": "",
        "strip": None,
        "curve": None,
        "ladder": None,
        "outputs": [],
        "shape": [],
        "spacing": "",
        "dtype": "",
        "plane": None,
        "voxels": 0,
        "phases": "",
        "study_time": "",
        "reasons": [{"code": "X", "message": HOSTILE, "advice": HOSTILE}],
        "decisions": [{"action": "accept-order", "by": HOSTILE, "reason": HOSTILE}],
        "settle": [HOSTILE],
    }
    return {
        "files": files,
        "counts": {"rejected": 1},
        "manifests": ["manifest.jsonl"],
        "unused": [],
        "rows": [row],
        "pages": [],
    } | more


def test_nothing_is_asked_from_outside_and_texts_are_escaped() -> None:
    text = page.render("convert.html", context())
    assert "<script>alert" not in text
    assert text.count("<script>") == 1
    assert "evil.example" not in re.sub(r"&lt;.*?&gt;", "", text)
    found = Found()
    found.feed(text)
    for _tag, value in found.asked:
        assert value.startswith("data:image/") or re.fullmatch(r"[\w./-]+", value)
        assert not value.startswith("//")
    for part in found.inside.values():
        for word in ("http", "//", "@import", "url(", "fetch(", "XMLHttpRequest"):
            assert word not in part


def test_the_policy_forbids_all_but_the_pages_own_style_and_script() -> None:
    text = page.render("convert.html", context())
    found = Found()
    found.feed(text)
    policy = next(m["content"] for m in found.meta if m.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(found.inside[tag].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_many_rows_are_paged_and_old_pages_go(tmp_path: Path) -> None:
    row = context()["rows"][0]
    path = tmp_path / "report.html"
    for count, names in (
        (450, ["report-2.html", "report-3.html", "report.html"]),
        (3, ["report.html"]),
        (0, ["report.html"]),
    ):
        page.write_pages(path, "convert.html", [row] * count, context())
        assert sorted(one.name for one in tmp_path.iterdir()) == names
    (tmp_path / "report-mine.html").write_text("a person's own")
    page.write_pages(path, "convert.html", [row], context())
    assert (tmp_path / "report-mine.html").exists()
