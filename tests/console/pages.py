"""What the tests of the console do with a page."""

from __future__ import annotations

import json
from typing import Any

from tests.support.browser import Page
from tests.support.processes import Daemon

VIEWS = ("overview", "nodes", "tenants", "prefixes", "events", "explain")


def visit(page: Page, master: Daemon, view: str) -> None:
    """Open a view anew, and wait until it shows what the master told."""
    page.open("about:blank")  # else only the fragment would change
    page.open(f"http://127.0.0.1:{master.ports['http_port']}/console/#/{view}")
    page.wait(
        "document.body?.dataset.turn > 0 && document.querySelector('h1') !== null",
        f"the view {view}",
    )


def refreshed(page: Page) -> None:
    """Wait until the page has asked again, and shows the answer."""
    turn = int(page.evaluate("document.body.dataset.turn"))
    page.wait(f"Number(document.body.dataset.turn) > {turn}", "the page to be refreshed")


def values(page: Page, within: str = "#view") -> dict[str, float]:
    """The numbers that the page shows, as exact as the master told them, by name."""
    found = page.evaluate(
        f"Object.fromEntries([...document.querySelectorAll('{within} data')]"
        ".map((one) => [one.dataset.name, Number(one.value)]))"
    )
    return {str(name): float(number) for name, number in found.items()}


def rows(page: Page, caption: str) -> list[dict[str, Any]]:
    """The rows of a table: the values of each, by name, and texts that have a name."""
    found: list[dict[str, Any]] = page.evaluate(
        "[...document.querySelectorAll('table')]"
        f".find((one) => one.caption.textContent === {json.dumps(caption)})"
        ".querySelectorAll('tbody tr').values().map((row) => Object.fromEntries("
        "row.querySelectorAll('[data-name]').values().map((one) => [one.dataset.name, "
        "one.tagName === 'DATA' ? Number(one.value) : one.textContent]))).toArray()"
    )
    return found


def text(page: Page, selector: str = "body") -> str:
    return str(page.evaluate(f"document.querySelector({json.dumps(selector)}).innerText"))


# Text that is too pale: WCAG 2.2 AA, 4.5 to 1.
PALE = """
(() => {
  const rgba = (text) => {
    const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
    return { r, g, b, a };
  };
  const light = ({ r, g, b }) => {
    const [x, y, z] = [r, g, b].map((one) => {
      const share = one / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const back = rgba(getComputedStyle(at).backgroundColor);
      if (back.a === 1) return back;
    }
    return { r: 255, g: 255, b: 255 };
  };
  const found = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    const style = getComputedStyle(element);
    if (!texts.currentNode.textContent.trim() || !element.checkVisibility()) continue;
    const color = element instanceof SVGElement ? style.fill : style.color;
    const [one, other] = [light(rgba(color)), light(behind(element))].sort((a, b) => b - a);
    const contrast = (one + 0.05) / (other + 0.05);
    if (contrast < 4.5) found.push(`${texts.currentNode.textContent}: ${contrast.toFixed(2)}`);
  }
  return found;
})()
"""

# What a screen reader could not name, or find its way by.
UNNAMED = """
(() => {
  const named = (one) =>
    one.labels?.length || one.getAttribute("aria-label") || one.textContent.trim();
  const wanting = "input, button, a, select, [role=region], svg[role=img]";
  const found = [...document.querySelectorAll(wanting)]
    .filter((one) => one.checkVisibility() && !named(one)).map((one) => one.outerHTML);
  const marks = ["h1", "main", "header", "nav[aria-label]", "html[lang]", "[aria-current=page]"];
  for (const mark of marks) {
    const count = document.querySelectorAll(mark).length;
    if (count !== 1) found.push(`${count} of ${mark}`);
  }
  const heads = [...document.querySelectorAll("h1, h2, h3")];
  const levels = heads.map((head) => Number(head.tagName[1]));
  levels.forEach((level, at) => {
    if (at && level > levels[at - 1] + 1) found.push(`h${level} after h${levels[at - 1]}`);
  });
  return found;
})()
"""
