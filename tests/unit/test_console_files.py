"""The console's files: nothing inline, nothing from elsewhere, no way from a string to markup."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import kvstore.master.console
from kvstore.master.console.routes import HEADERS

STATIC = Path(kvstore.master.console.__file__).parent / "static"
MARKUP = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|setHTML"
    r"|DOMParser|srcdoc|javascript:"
)
ELSEWHERE = re.compile(r"(?:https?:)?//[\w.]+\.\w|@import|url\(")
NAMESPACE = "http://www.w3.org/2000/svg"
MOST_LINES = 250


class Inline(HTMLParser):
    """Collects what a strict policy would refuse."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = {name for name, _ in attrs}
        self.found += [f"<{tag} {name}>" for name in names if name.startswith("on")]
        if "style" in names or tag == "style":
            self.found.append(f"style of <{tag}>")
        if tag == "script" and "src" not in names:
            self.found.append("<script> without src")


def wrong_in(text: str) -> list[str]:
    lines = [line for line in text.replace(NAMESPACE, "").splitlines()]
    return [line for line in lines if MARKUP.search(line) or ELSEWHERE.search(line)]


def test_the_files_are_plain() -> None:
    files = sorted(STATIC.iterdir())
    assert {path.suffix for path in files} == {".html", ".css", ".js", ".svg"}
    for path in files:
        text = path.read_text()
        assert not wrong_in(text), path
        assert len(text.splitlines()) <= MOST_LINES, path
    page = (STATIC / "index.html").read_text()
    assert not Inline(page).found
    named = re.findall(r'(?:src|href)="([^"#]+)"', page)
    named += re.findall(r'from "\./([\w.]+)"', "".join(path.read_text() for path in files))
    assert {*named} | {"index.html"} == {path.name for path in files}


@pytest.mark.parametrize(
    "line",
    [
        "view.innerHTML = name;",
        '<script src="https://cdn.example.com/x.js">',
        "background: url(x.png)",
        "eval(text)",
    ],
)
def test_a_planted_line_is_found(line: str) -> None:
    assert wrong_in(line)


def test_planted_markup_is_found() -> None:
    found = Inline('<p onclick="x()" style="top:0"></p><script>1</script><style></style>').found
    assert len(found) == 4


def test_the_policy_is_strict() -> None:
    policy = dict(
        part.strip().partition(" ")[::2] for part in HEADERS["Content-Security-Policy"].split(";")
    )
    assert policy["default-src"] == "'none'" and policy["frame-ancestors"] == "'none'"
    assert {*policy.values()} == {"'none'", "'self'", "'script'"}
    assert policy["require-trusted-types-for"] == "'script'"
