"""The rules: promtool's tests of them, and proof that these would see a broken rule."""

from __future__ import annotations

import functools
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import documents
from tests.support.documents import ROOT
from tests.support.prometheus import promtool

FOLDER = ROOT / "deploy/monitoring"
RULES = FOLDER / "rules.yml"
TESTS = FOLDER / "rules.test.yml"


@functools.cache
def read(path: Path) -> dict[str, Any]:
    """Parse a file once; nobody changes what is returned."""
    parsed: dict[str, Any] = yaml.safe_load(path.read_text())
    return parsed


def rules() -> list[dict[str, Any]]:
    return [rule for group in read(RULES)["groups"] for rule in group["rules"]]


def name_of(rule: dict[str, Any]) -> str:
    return str(rule.get("alert") or rule["record"])


ALERTS = [rule for rule in rules() if "alert" in rule]
NAMES = [name_of(rule) for rule in rules()]


def run_tests(folder: Path, *files: Path) -> subprocess.CompletedProcess[str]:
    command = [promtool(), "test", "rules", *(str(file) for file in files or [TESTS])]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100)


def test_the_rules_do_what_their_tests_say() -> None:
    done = run_tests(FOLDER)
    assert done.returncode == 0, done.stdout + done.stderr


def mutants(rule: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rule, broken: it never fires or has no value, it always does, it waits for nothing."""
    yield {**rule, "expr": "vector(1) > 1"}
    yield {**rule, "expr": "vector(1)"}
    if "for" in rule:
        yield {key: value for key, value in rule.items() if key != "for"}
    for parts in ({"labels": {"severity": "none"}}, {"annotations": {"summary": "Other."}}):
        if "alert" in rule:
            yield {**rule, **parts}


def checks_of(name: str) -> dict[str, Any]:
    """The tests of one rule, without those of others, which take their time."""
    tests = [test for test in read(TESTS)["tests"] if name in json.dumps(test)]
    assert tests, f"{name} has no test"
    return {**read(TESTS), "tests": tests}


def write_rules(folder: Path, changed: dict[str, Any]) -> Path:
    """Write the rules with one that is `changed`, beside its tests, whose path is returned."""
    folder.mkdir()
    name = name_of(changed)
    groups = []
    for group in read(RULES)["groups"]:
        rows = [changed if name_of(rule) == name else rule for rule in group["rules"]]
        needed = [rule for rule in rows if "record" in rule or rule is changed]
        groups.append({**group, "rules": needed})
    # JSON is YAML, too.
    (folder / RULES.name).write_text(json.dumps({"groups": groups}))
    tests = folder / TESTS.name
    tests.write_text(json.dumps(checks_of(name)))
    return tests


@pytest.mark.parametrize("name", NAMES)
def test_a_broken_rule_is_seen(name: str, tmp_path: Path) -> None:
    (rule,) = (rule for rule in rules() if name_of(rule) == name)
    files = [
        write_rules(tmp_path / str(number), changed)
        for number, changed in enumerate([rule, *mutants(rule)])
    ]
    done = run_tests(tmp_path, *files)
    said = done.stdout.split("Unit Testing:")[1:]
    outcomes = dict(zip(map(str, files), said, strict=True))
    assert "SUCCESS" in outcomes[str(files[0])], said[0]
    for file, mutant in zip(files[1:], mutants(rule), strict=True):
        assert "SUCCESS" not in outcomes[str(file)], f"the tests do not see {mutant}"


def expectations() -> dict[str, list[list[Any]]]:
    """What each alert is expected to do, at every time that is looked at."""
    found: dict[str, list[list[Any]]] = {}
    for test in read(TESTS)["tests"]:
        for check in test.get("alert_rule_test", ()):
            found.setdefault(check["alertname"], []).append(check["exp_alerts"])
    return found


@pytest.mark.parametrize("alert", ALERTS, ids=name_of)
def test_an_alert_has_both_cases_and_a_runbook_entry(alert: dict[str, Any]) -> None:
    checks = expectations()[alert["alert"]]
    assert any(checks), "it is never expected to fire"
    assert not all(checks), "it is always expected to fire"
    assert alert["labels"]["severity"] in ("info", "warning", "critical")
    url, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert url.endswith("/deploy/monitoring/README.md")
    readme = documents.read(FOLDER / "README.md")
    headings = {documents.slug(heading): heading for heading in readme.headings()}
    assert headings.get(anchor) == alert["alert"]
    assert sum(len(line.split()) for _, line in readme.section(headings[anchor])) >= 15


def test_the_runbook_has_no_entry_without_an_alert() -> None:
    headings = {h for h in documents.read(FOLDER / "README.md").headings() if h.startswith("Kvst")}
    assert headings == {alert["alert"] for alert in ALERTS}


def test_every_metric_of_a_rule_is_one_of_the_inventory() -> None:
    known = set(re.findall(r"^\| `(\w+)` \|", (FOLDER / "README.md").read_text(), re.M))
    for rule in rules():
        used = set(re.findall(r"\bkvstore_\w+", rule["expr"]))
        assert used <= known, f"{name_of(rule)}: {used - known}"
    assert "kvstore_cluster_node_up" in known
