"""The console in a headless Chromium. These tests run with --console only: a minute or two."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.browser import PROGRAMS, Page, browser, program


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--console"):
        reason = "drives a browser, which takes minutes: make test-console"
    elif program() is None:
        reason = f"no browser ({', '.join(PROGRAMS)}): apt-get install chromium"
    else:
        return
    for item in items:
        if item.get_closest_marker("console"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(autouse=True)
def no_complaints(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail what makes the browser complain: errors of scripts, breaches of the policy."""
    page: Page = request.getfixturevalue("page")
    page.leave()
    yield
    page.evaluate("1")  # takes what was told meanwhile
    assert not page.complaints


@pytest.fixture(scope="session")
def pictures() -> Path:
    """Where screenshots go, to be looked at."""
    folder = Path(__file__).resolve().parents[2] / "build" / "console"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
