"""The pages themselves: hostile names, tokens, keyboard, contrast, phone and desktop, no master."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvstore._proto import node_pb2
from tests.console.pages import PALE, UNNAMED, VIEWS, refreshed, text, visit
from tests.support.browser import Page
from tests.support.cluster import Cluster
from tests.support.control import http_get
from tests.support.payloads import proof
from tests.support.processes import wait_for
from tests.support.simulated import Simulated, simulated

pytestmark = [pytest.mark.console, pytest.mark.cluster, pytest.mark.timeout(600)]

MARKUP = "<img src=x onerror=hacked=1><script>hacked=1</script>\"'"
LONG = "one-word-" * 100
SHAPES = {"desktop": (1280, 900), "phone": (390, 844), "narrow": (320, 640)}


def hot_keys(cluster: Cluster) -> set[str]:
    """The first keys of what the page shows as hot prefixes."""
    body = http_get(cluster.master, "/console/api/prefixes")[1]
    return {row["key"] for row in json.loads(body)["prefixes"]}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A real node with a namespace and a key of markup, and one on paper of nothing else."""
    cluster = Cluster(tmp_path_factory.mktemp("hostile"))
    evil = Simulated(
        MARKUP,
        used_bytes=1 << 39,
        labels={MARKUP: MARKUP},
        health=node_pb2.NodeHealth(
            software_version=MARKUP,
            lacks=[MARKUP, "a-word-that-goes-on-and-on-" * 9],
            config_refused=MARKUP,
            nvme=node_pb2.NvmeTier(state=MARKUP, capacity_bytes=1 << 40, object_bytes=1 << 39),
        ),
    )
    try:
        cluster.start_node("a", segment_size="8mb")
        with simulated(cluster.master, [evil, Simulated("x" * 255)]):
            store = cluster.connect(namespace=MARKUP)
            for number in range(200):
                store.put(f"k{number}", proof(f"k{number}", 64 << 10))
                store.get(f"k{number // 2}")
            for key in (MARKUP, LONG):
                store.put(key, b"x")
                for _ in range(20):
                    store.get(key)
            wait_for(lambda: evil.beats > 2, "the heartbeats")
            wait_for(lambda: {MARKUP, LONG} <= hot_keys(cluster), "the reads to be told", 20)
            yield cluster
    finally:
        cluster.close()


@pytest.mark.parametrize("view", VIEWS)
def test_markup_is_text(page: Page, hostile: Cluster, view: str) -> None:
    visit(page, hostile.master, view)
    if view == "explain":
        for key in (MARKUP, f"{MARKUP} is not there"):
            page.type("#namespace", MARKUP)
            page.type("#key", key)
            page.click("form button")
            refreshed(page)
            page.wait("!document.querySelector('.result').hidden", "the explanation")
    if view != "overview":
        assert MARKUP in text(page) or MARKUP.replace("'", "'\\''") in text(page)
    assert page.evaluate("typeof hacked") == "undefined"
    assert page.evaluate("document.images.length") == 1, "the brand's own"
    assert page.evaluate("document.scripts.length") == 1


def test_the_policy_is_in_force(page: Page, hostile: Cluster) -> None:
    visit(page, hostile.master, "overview")
    attempt = (
        "(() => { try { document.querySelector('footer').innerHTML = '<b>x</b>'; return 'done' }"
        " catch (error) { return error.name } })()"
    )
    assert page.evaluate(attempt) == "TypeError"
    assert page.evaluate("fetch('http://127.0.0.2:1/').then(() => 1, () => 0)") == 0
    assert any("TrustedHTML" in said for said in page.complaints)
    assert any("Content Security Policy" in said for said in page.complaints)
    page.leave()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_view_in_every_shape(
    page: Page, hostile: Cluster, pictures: Path, shape: str, dark: bool
) -> None:
    """Nothing is wider than the page, nothing too pale, and everything has a name."""
    page.shape(*SHAPES[shape], dark)
    for view in VIEWS:
        visit(page, hostile.master, view)
        if view == "explain":
            page.type("#namespace", MARKUP)
            page.type("#key", MARKUP)
            page.click("form button")
            page.wait("!document.querySelector('.result').hidden", "the explanation")
        page.screenshot(pictures / f"{view}-{shape}-{'dark' if dark else 'light'}.png")
        wider = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(wider) == 0, view
        assert page.evaluate(PALE) == [], view
        assert page.evaluate(UNNAMED) == [], view
    page.shape(*SHAPES["desktop"])


def test_the_checks_of_looks_can_fail(page: Page, hostile: Cluster) -> None:
    page.shape(*SHAPES["desktop"])
    visit(page, hostile.master, "explain")
    page.evaluate("document.querySelector('h1').style.color = 'rgb(200, 200, 200)'")
    assert len(page.evaluate(PALE)) == 1
    page.evaluate("document.querySelector('#key').parentElement.replaceWith('x')")
    page.evaluate("document.querySelector('main').append(document.createElement('input'))")
    page.evaluate("document.querySelector('h1').remove()")
    assert len(page.evaluate(UNNAMED)) == 2


def test_by_keyboard(page: Page, hostile: Cluster) -> None:
    visit(page, hostile.master, "nodes")
    page.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    seen = set()
    for _ in range(20):
        page.press("Tab")
        seen.add(page.evaluate("document.activeElement.textContent.trim()"))
    assert {"Overview", "Explain", "Pause", "Memory", "Node"} <= seen
    page.click("th:nth-child(3) button")
    assert page.evaluate("document.querySelector('th:nth-child(3)').ariaSort") == "descending"
    first = "document.querySelector('tbody [data-name=used_bytes]').value"
    assert page.evaluate(first) != "0"
    page.click("th:nth-child(3) button")
    assert page.evaluate("document.querySelector('th:nth-child(3)').ariaSort") == "ascending"
    page.evaluate("location.hash = '#/overview'")
    page.wait("document.querySelector('.chart svg path, .chart svg circle') !== null", "a chart")
    assert page.evaluate("document.activeElement.id") == "main"
    page.evaluate("document.querySelectorAll('.chart svg')[1].focus()")
    page.press("ArrowLeft")
    assert " at " in text(page, ".chart:nth-child(2) .readout")


def test_a_token_is_asked_for_and_kept_in_the_tab(page: Page, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.touch(0o600)
    tokens.write_text(
        "root operator * root-secret-0123456789\nengine client default engine-secret-0123456789\n"
        "a node * node-secret-0123456789\n"
    )
    operator = tmp_path / "operator"
    operator.touch(0o600)
    operator.write_text("root operator * root-secret-0123456789\n")
    (tmp_path / "c").mkdir()
    cluster = Cluster(tmp_path / "c", ["--auth-token-file", str(tokens)], str(operator))
    try:
        cluster.start_node("a", auth_token_file=str(tokens))
        url = f"http://127.0.0.1:{cluster.master.ports['http_port']}/console/"
        page.open(url)
        page.wait("document.querySelector('#token') !== null", "the form")
        assert "Refused" not in text(page)
        page.type("#token", "root:wrong-secret-0123456789")
        page.click("form button")
        page.wait("document.querySelector('.refusal') !== null", "the refusal")
        page.type("#token", "root:root-secret-0123456789")
        page.click("form button")
        page.wait("document.querySelector('#state')?.textContent === '1 node'", "the cluster")
        assert page.evaluate("document.cookie + localStorage.length") == "0"
        page.reload()
        page.wait("document.querySelector('#state')?.textContent === '1 node'", "the cluster")
        page.evaluate("document.querySelector('#forget').click()")
        page.wait("document.querySelector('#token') !== null", "the form")
        assert page.evaluate("Object.keys(sessionStorage).includes('kvstore-token')") is False
        page.type("#token", "engine:engine-secret-0123456789")
        page.click("form button")
        page.wait("document.querySelector('#state')?.textContent === '1 node'", "the cluster")
        page.evaluate("location.hash = '#/events'")
        page.wait("!document.querySelector('#trouble').hidden", "a sentence")
        assert "does not have the role operator" in text(page, "#trouble")
        page.leave()  # the browser complains of each 401 and 403
    finally:
        cluster.close()


def test_without_a_master(page: Page, tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    try:
        cluster.start_node("a")
        visit(page, cluster.master, "overview")
        port = cluster.master.ports["http_port"]
        cluster.master.kill()
        page.wait("document.querySelector('#state')?.textContent === 'unreachable'", "the pill")
        assert "does not answer; these values are" in text(page, "#trouble")
        assert "Hit ratio" in text(page)
        cluster.master_options = ["--http-port", str(port)]
        cluster.restart_master()
        page.wait("document.querySelector('#state')?.textContent.includes('1 node')", "the cluster")
        assert page.evaluate("document.querySelector('#trouble').hidden")
        page.leave()  # it complains of connections that were refused
    finally:
        cluster.close()
