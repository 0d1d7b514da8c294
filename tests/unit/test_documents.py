"""The documents tell the truth: what they cite exists, their commands and examples are valid."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from kvstore import config, config_table
from tests.support import documents
from tests.support.commands import options_of
from tests.support.documents import ROOT, Document

DOCUMENTS = [documents.read(path) for path in documents.markdown_files()]
LANGUAGES: dict[str, Callable[[str], object]] = {
    "python": documents.compile_python,
    "json": documents.load_configuration,
    "yaml": lambda text: list(yaml.safe_load_all(text)),
}
# What a reader finds from the top: a folder without one has no entrance.
MUST_EXIST = [
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
    *(f"{f}/README.md" for f in ("bench", "deploy", "kvstore", "native", "proto", "tests")),
    "kvstore/compat/mooncake/README.md",
    *(f"kvstore/integrations/{engine}/README.md" for engine in ("lmcache", "sglang", "vllm")),
]
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)


def planted(text: str, name: str = "deploy/README.md") -> Document:
    return documents.parse(ROOT / name, text)


def readme_of(name: str) -> Document:
    return documents.read(ROOT / name)


@pytest.mark.parametrize("name", MUST_EXIST)
def test_every_folder_has_its_document(name: str) -> None:
    assert (ROOT / name).is_file(), name


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 250


@each_document
def test_links_and_paths_lead_somewhere(document: Document) -> None:
    found = [documents.check_links(document), documents.check_paths(document)]
    assert not documents.all_of(found), documents.all_of(found)


@each_document
def test_commands_would_be_understood(document: Document) -> None:
    found = [documents.check_commands(document), documents.check_code_spans(document)]
    assert not documents.all_of(found), documents.all_of(found)


@each_document
def test_blocks_are_valid(document: Document) -> None:
    assert not documents.check_blocks(document, LANGUAGES)


def test_sources_cite_what_exists() -> None:
    found = []
    for path in documents.source_files():
        if path.name == Path(__file__).name:  # its planted mistakes
            continue
        text = path.read_text()
        found.append(documents.check_source_paths(path, text))
        found.append(documents.check_cited_documents(path, text))
    assert not documents.all_of(found), documents.all_of(found)


def test_documents_cite_rules_and_headings_that_exist() -> None:
    found = [
        documents.check_cited_documents(document.path, document.path.read_text())
        for document in DOCUMENTS
    ]
    assert not documents.all_of(found), documents.all_of(found)


def test_the_rules_of_the_shared_memory_are_all_there() -> None:
    assert documents.rules(readme_of(documents.NATIVE)) == [*range(1, 10)]


def test_the_glossarys_words_are_used() -> None:
    words = documents.forbidden_words(readme_of(documents.NATIVE))
    found = [
        documents.check_words(path, path.read_text(), words)
        for path in documents.files_with_words()
    ]
    assert not documents.all_of(found), documents.all_of(found)


def test_the_configuration_table_is_the_codes() -> None:
    text = (ROOT / "deploy/README.md").read_text()
    shown = text.split("<!-- config table -->")[1].split("<!-- end of config table -->")[0]
    hint = "paste the output of `python -m kvstore.config_table` into deploy/README.md"
    assert shown.strip() == config_table.table().strip(), hint


@pytest.mark.parametrize("name", ["README.md", "kvstore/README.md"])
def test_the_first_example_runs(name: str) -> None:
    example = next(b.text for b in readme_of(name).blocks if b.language == "python")
    assert "kvstore.open" in example
    subprocess.run([sys.executable, "-c", example], check=True, timeout=60)


@pytest.mark.parametrize("path", sorted((ROOT / "deploy/local").glob("*.json")), ids=str)
def test_the_local_cluster_is_configured(path: Path) -> None:
    config.load(config.NodeConfig, path, {})


def option_names(document: Document) -> set[str]:
    """Names in the first column of the table below "Options"."""
    rows = (text.split("|")[1] for _, text in document.section("Options") if text.startswith("|"))
    return {name for cell in rows for name in re.findall(r"`(\w+)`", cell)}


@pytest.mark.parametrize(
    ("engine", "of_engine"),
    [("lmcache", set()), ("sglang", {"hicache_storage_pass_prefix_keys"}), ("vllm", set())],
)
def test_an_integrations_options_are_all_in_its_readme(engine: str, of_engine: set[str]) -> None:
    known = {field.name for field in dataclasses.fields(options_of(engine))}
    document = readme_of(f"kvstore/integrations/{engine}/README.md")
    assert option_names(document) == known | of_engine


def test_an_option_that_is_not_in_the_table_is_found() -> None:
    text = "## Options\n\n| Key | Default |\n|---|---|\n| `master`, `tenant` | `x` |\n"
    assert option_names(planted(text)) == {"master", "tenant"}


def test_lmcaches_example_has_valid_options() -> None:
    document = readme_of("kvstore/integrations/lmcache/README.md")
    example = yaml.safe_load(next(b.text for b in document.blocks if b.language == "yaml"))
    (plugin,) = example["remote_storage_plugins"]
    assert options_of("lmcache").of(plugin, example["extra_config"]).master


# --- the checks find what is wrong ---


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("see [x](nowhere.md)", "nowhere.md leads nowhere"),
        ("see [x](../README.md#no-such-heading)", "no heading for ../README.md#no-such-heading"),
        ("# One\nsee [x](#two)", "no heading for #two"),
        ("in `tests/unit/test_nothing.py`", "there is no tests/unit/test_nothing.py"),
        ("in `kvstore/nowhere/`", "there is no kvstore/nowhere"),
        ("in `kvstore/{config,nothing}.py`", "there is no kvstore/nothing.py"),
        ("in `kvstore/config.py:no_such_function`", "has no no_such_function"),
    ],
)
def test_a_wrong_link_or_path_is_found(text: str, said: str) -> None:
    document = planted(text)
    found = documents.check_links(document) + documents.check_paths(document)
    assert len(found) == 1 and said in found[0], found


def test_right_links_and_paths_are_accepted() -> None:
    text = (
        "# What `it` is: one\n[a](#what-it-is-one) [b](../kvstore/README.md#commands) [c](rbg)\n"
        "`kvstore/config.py:table` `local/node-{a,b}.json` `base/status.h` `tests/sim/*.py`\n"
        "`build/native/sim/sim` `a/b` `/etc/kvstore/node.json` [d](https://example.org/x)"
    )
    document = planted(text)
    assert documents.check_links(document) + documents.check_paths(document) == []


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("make no-such-target", "the Makefile has no target no-such-target"),
        ("make bench NO_SUCH=1", "the Makefile has no variable NO_SUCH"),
        ("kvstore nodse", "No such command 'nodse'"),
        ("kvstore nodes --jsno", "--jsno"),
        ("kvstore put", "Missing argument 'KEY'"),
        ("kvstore drain a --wait-s long", "'long' is not a valid integer"),
        ("kvstore exists a && kvstore gte a", "No such command 'gte'"),
        ("kvstore config migrat old.json", "No such command 'migrat'"),
        (".venv/bin/kvstore-node --confg a.json", "--confg"),
        ("A=1 kvstore-master --grpc-prot 1", "--grpc-prot"),
        ("kvstroe nodes", "unknown program kvstroe"),
        ("python -m bench.nothing", "there is no module bench.nothing"),
        ("python -m bench --onyl shm", "--onyl"),
        ("python -m bench.attach --gibi 1", "bench.attach has no option --gibi"),
        ("python -m pytest tests/no_such_folder", "there is no tests/no_such_folder"),
        ("python -m pytest --enginse", "tests/conftest.py has no option --enginse"),
        ("python -m tests.rdma.vm --acell kvm -- cat a", "tests.rdma.vm has no option --acell"),
        ("python -m tests.rdma.vm -- kvstore nodse", "No such command 'nodse'"),
        ("tests/nothing.sh", "there is no tests/nothing.sh"),
        ("vllm serve M --kv-transfer-config '{\"a\": }'", "Expecting value"),
        (
            'vllm serve M --kv-transfer-config \'{"kv_connector": "KVStoreConnector", '
            '"kv_connector_module_path": "kvstore.integrations.vllm", '
            '"kv_connector_extra_config": {"mastre": "h:1"}}\'',
            "did you mean 'master'?",
        ),
        (
            "python -m sglang.launch_server --hicache-storage-backend-extra-config "
            '\'{"master": "h:1", "replica": 2}\'',
            "did you mean 'replicas'?",
        ),
        ("echo 'open", "No closing quotation"),
    ],
)
def test_a_wrong_command_is_found(command: str, said: str) -> None:
    found = documents.check_commands(planted(f"```console\n$ {command}\nits output\n```\n"))
    assert len(found) == 1 and said in found[0], found
    assert found[0].startswith("deploy/README.md:2: ")


def test_commands_over_several_lines_are_one() -> None:
    text = "```console\n$ kvstore nodes \\\n    --json\n$ kvstore nodse   # why\n```\n"
    (found,) = documents.check_commands(planted(text))
    assert found.startswith("deploy/README.md:4: ") and "nodse" in found


@pytest.mark.parametrize(
    ("span", "said"),
    [
        ("make tset", "no target tset"),
        ("kvstore nodse", "nodse"),
        ("kvstore ls --lmit 2", "--lmit"),
    ],
)
def test_a_wrong_command_in_a_sentence_is_found(span: str, said: str) -> None:
    (found,) = documents.check_code_spans(planted(f"Run `{span}` first; `kvstore drain` later."))
    assert said in found


@pytest.mark.parametrize(
    ("language", "text", "said"),
    [
        ("python", "x = = 1", "SyntaxError"),
        ("json", '{"segment_size": }', "JSONDecodeError"),
        ("json", '{"master_address": "h:1", "segment_siez": 1}', "did you mean 'segment_size'?"),
        ("json", '{"data_dir": "/d", "grpc_port": 70000}', "grpc_port"),
        ("yaml", "a: [1", "ParserError"),
    ],
)
def test_a_wrong_block_is_found(language: str, text: str, said: str) -> None:
    (found,) = documents.check_blocks(planted(f"```{language}\n{text}\n```\n"), LANGUAGES)
    assert said in found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("# (README, Nonsense)", "README.md has no heading 'Nonsense'"),
        ("// deploy/README.md, No such thing.", "deploy/README.md has no heading"),
        ("# See nowhere/README.md.", "there is no nowhere/README.md"),
        ("// Broken (" + "DESIGN" + ".md, rule 3).", "cites " + "DESIGN" + ".md"),
        ("// (README.md, rule 3)", "README.md has no rule 3"),
        ("// as in README.md,\n// rules 1 and 2", "README.md has no rule 1"),
    ],
)
def test_a_wrong_citation_is_found(text: str, said: str) -> None:
    found = documents.check_cited_documents(ROOT / "kvstore" / "config.py", text)
    assert found and said in found[0], found


def test_right_citations_are_accepted() -> None:
    text = (
        '# (README, Security) and the README, too; deploy/README.md,\n    # Tokens. "README, Map"'
    )
    assert documents.check_cited_documents(ROOT / "kvstore" / "config.py", text) == []


def test_a_wrong_path_in_a_source_is_found() -> None:
    text = "// tests/unit/test_config.py\n// as tests/unit/test_nothing.py says\n"
    (found,) = documents.check_source_paths(ROOT / "native/src/base/status.h", text)
    assert found.startswith("native/src/base/status.h:2: tests/unit/test_nothing.py")


def test_rules_are_those_below_their_heading() -> None:
    text = "1. no\n\n## Rules of the shared memory\n1. one\n   more\n2. **two**\n## Next\n3. no\n"
    assert documents.rules(planted(text)) == [1, 2]


WORDS = (
    "## Glossary\n\n### Words we do not use\n\n| Not this | but |\n|---|---|\n"
    "| `gizmo_ms`, `GizmoOp` | `thing_ms` |\n| odd gizmo | thing |\n"
    "\n## Next\n| `x` | y |\n"
)


def test_a_forbidden_word_is_found() -> None:
    words = documents.forbidden_words(planted(WORDS))
    assert words == {
        "gizmo_ms": "`thing_ms`",
        "GizmoOp": "`thing_ms`",
        "odd gizmo": "thing",
    }
    text = (
        "int my_gizmo_ms, GizmoOps, gizmoop;  // other words\n"
        "int gizmo_ms_;\n"
        "f(GizmoOp(1));  // on the odd gizmo\n"
    )
    found = documents.check_words(ROOT / "native/src/base/status.h", text, words)
    assert [re.sub(r": say.*", "", one) for one in found] == [
        "native/src/base/status.h:2: gizmo_ms",
        "native/src/base/status.h:3: GizmoOp",
        "native/src/base/status.h:3: odd gizmo",
    ]


def test_without_the_table_no_word_is_forbidden() -> None:
    assert documents.forbidden_words(planted("## Glossary\n")) == {}
    assert documents.check_words(ROOT / "README.md", "any", {}) == []
