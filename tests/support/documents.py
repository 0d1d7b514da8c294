"""What the documents of this repository say, and how to check it: each check returns sentences."""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.commands import check_line

ROOT = Path(__file__).resolve().parents[2]
NATIVE = "native/README.md"
RULES = "Rules of the shared memory"
FORBIDDEN_WORDS = "Words we do not use"
# Folders of the repository that a cited path may start with, and those that a build makes.
FOLDERS = ("bench", "deploy", "kvstore", "native", "proto", "tests", ".ci")
_BUILT = ("build", "dist", ".venv", ".venv-peers")
_SUFFIXES = "cpp|h|hpp|py|pyi|md|json|yaml|toml|proto|sh|cmake|conf|service|txt|binpb"
_SOURCES = {".py", ".pyi", ".h", ".cpp", ".proto", ".sh", ".yaml", ".toml", ".cmake", ".service"}
_SOURCE_NAMES = {"Makefile", "Dockerfile", "CMakeLists.txt", ".ci/run"}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its first line's number, its text."""

    language: str
    line: int
    text: str


@dataclass(frozen=True)
class Document:
    """A Markdown file, taken apart."""

    path: Path
    prose: list[tuple[int, str]]
    """Lines outside of fences, with their numbers."""
    blocks: list[Block]

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    def headings(self) -> list[str]:
        found = (re.match(r"#{1,6}\s+(.*?)\s*$", text) for _, text in self.prose)
        return [match[1] for match in found if match]

    def section(self, heading: str) -> list[tuple[int, str]]:
        """Lines below a heading, to the next one of any level."""
        inside = False
        lines = []
        for number, text in self.prose:
            if text.startswith("#"):
                inside = text.lstrip("#").strip() == heading
            elif inside:
                lines.append((number, text))
        return lines


def parse(path: Path, text: str) -> Document:
    prose: list[tuple[int, str]] = []
    blocks: list[Block] = []
    fence: tuple[str, int] | None = None
    inside: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        mark = re.match(r"\s*```(\w*)", line)
        if mark and fence is None:
            fence, inside = (mark[1], number + 1), []
        elif mark and fence is not None:
            blocks.append(Block(fence[0], fence[1], "\n".join(inside) + "\n"))
            fence = None
        elif fence is not None:
            inside.append(line)
        else:
            prose.append((number, line))
    return Document(path, prose, blocks)


def read(path: Path) -> Document:
    return parse(path, path.read_text())


def repository_files() -> Iterator[Path]:
    """Every file that is not built, cached or git's."""
    skipped = {*_BUILT, ".git", "__pycache__", "results"}
    for folder, folders, names in os.walk(ROOT):
        folders[:] = sorted(
            name
            for name in folders
            if name not in skipped and not name.endswith((".egg-info", "_cache"))
        )
        yield from (Path(folder) / name for name in sorted(names))


def markdown_files() -> list[Path]:
    return [path for path in repository_files() if path.suffix == ".md"]


def source_files() -> list[Path]:
    return [
        path
        for path in repository_files()
        if "_proto" not in path.parts
        and (path.suffix in _SOURCES or {path.name, str(path.relative_to(ROOT))} & _SOURCE_NAMES)
    ]


def slug(heading: str) -> str:
    """The anchor that a heading gets on GitHub."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    return re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")


# --- links and paths ---


def check_links(document: Document) -> list[str]:
    """Relative links lead to files, their anchors to headings."""
    wrong = []
    for number, text in document.prose:
        for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "``", text)):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            file = (document.path.parent / path).resolve() if path else document.path
            if not file.exists():
                wrong.append(f"{document.name}:{number}: {target} leads nowhere")
            elif anchor:
                other = document if file == document.path else read(file)
                if anchor not in map(slug, other.headings()):
                    wrong.append(f"{document.name}:{number}: no heading for {target}")
    return wrong


def _expanded(path: str) -> list[str]:
    """The paths of "a/{b,c}.h"."""
    braces = re.search(r"\{([^{}]*)\}", path)
    if braces is None:
        return [path]
    return [
        done
        for choice in braces[1].split(",")
        for done in _expanded(path[: braces.start()] + choice + path[braces.end() :])
    ]


def _exists(path: str, beside: Path) -> bool:
    """Whether a cited path is there: from the root, from its document, or as it is included."""
    places = [ROOT, beside, ROOT / "native" / "src", ROOT / "proto"]
    if (ROOT / "native") in beside.parents:
        places.append(ROOT / "native")
    for place in places:
        if "*" in path:
            if any(place.glob(path)):
                return True
        elif (place / path).exists():
            return True
    return False


def _wrong_citation(cited: str, beside: Path) -> str | None:
    path, _, name = cited.partition(":")
    if any(upper in path for upper in ("ROOM", "NAME", "NOUN")):  # a pattern for new files
        return None
    for one in _expanded(path.rstrip("/") if path != "/" else path):
        if not _exists(one, beside):
            return f"{cited}: there is no {one}"
    if re.fullmatch(r"~?\w+(::~?\w+)*(\(\))?", name):
        last = re.split("::", name.removesuffix("()"))[-1]
        places = [place / path for place in (ROOT, beside, ROOT / "native" / "src")]
        text = next(place for place in places if place.exists()).read_text()
        if not re.search(rf"(?<!\w){re.escape(last)}(?!\w)", text):
            return f"{cited}: {path} has no {last}"
    return None


_PART = r"(?:[\w.*-]|\{[\w.,*-]*\})"  # of a path: letters, wildcards, {several,names}
_CITED_IN_CODE_SPAN = re.compile(rf"(?:{_PART}+/)+(?:{_PART}*\.(?:{_SUFFIXES})(?::\S+)?)?")


def check_paths(document: Document) -> list[str]:
    """Paths in `code spans` exist: folders (with a slash behind) and files with a known suffix."""
    wrong = []
    for number, text in document.prose:
        for span in re.findall(r"`([^`]+)`", text):
            if not _CITED_IN_CODE_SPAN.fullmatch(span) or span.split("/")[0] in _BUILT:
                continue
            problem = _wrong_citation(span, document.path.parent)
            if problem:
                wrong.append(f"{document.name}:{number}: {problem}")
    return wrong


_CITED_IN_SOURCE = re.compile(
    rf"(?<![\w./-])(?:{'|'.join(map(re.escape, FOLDERS))})/(?:{_PART}|/)*\.(?:{_SUFFIXES})(?!\w)"
)


def check_source_paths(path: Path, text: str) -> list[str]:
    """Paths of this repository in comments and strings of a source file exist."""
    wrong = []
    for match in _CITED_IN_SOURCE.finditer(text):
        problem = _wrong_citation(match[0], path.parent)
        if problem:
            line = text.count("\n", 0, match.start()) + 1
            wrong.append(f"{path.relative_to(ROOT)}:{line}: {problem}")
    return wrong


# --- documents cited in comments ---

_DOCUMENT = re.compile(
    r"(?<![\w./:-])((?:[\w.-]+/)*(?:README|CONTRIBUTING|SECURITY|CHANGELOG))(?:\.md)?"
    r"(?:, (?:(rule)s? (\d+(?:(?:, | and | to )\d+)*)|([A-Z][^,;()\"`]*)))?"
)
_UNCITED = "DESIGN" + ".md"  # no part of the repository


def _joined(text: str) -> str:
    """The text on one line, without what begins a line of a comment: # // * and quotes."""
    return re.sub(r"\"?\s*\n[ \t]*(?:(?://+|#+|\*)[ \t]*)?\"?", " ", text)


def check_cited_documents(path: Path, text: str) -> list[str]:
    """Documents, headings and rules that a file cites: "deploy/README.md, Tokens"; "…, rule 3"."""
    name = path.relative_to(ROOT)
    wrong = [f"{name}: cites {_UNCITED}"] if _UNCITED in text else []
    for match in _DOCUMENT.finditer(_joined(text)):
        cited, rule, numbers, heading = match.groups()
        places = [ROOT / f"{cited}.md", path.parent / f"{cited}.md"]
        file = next((place for place in places if place.exists()), None)
        if file is None:
            wrong.append(f"{name}: there is no {cited}.md")
        elif rule:
            known = set(rules(read(file)))
            wrong += [
                f"{name}: {cited}.md has no rule {number}"
                for number in map(int, re.findall(r"\d+", numbers))
                if number not in known
            ]
        elif heading and not _begins_with_heading(heading, read(file)):
            wrong.append(f"{name}: {cited}.md has no heading {heading.strip()!r}")
    return wrong


def _begins_with_heading(text: str, document: Document) -> bool:
    headings = [one.replace("`", "").lower() for one in document.headings()]
    return text.lower().startswith(tuple(headings))


def rules(document: Document) -> list[int]:
    """Numbers of the list below the heading of the shared memory's rules."""
    found = (re.match(r"(\d+)\.\s", text) for _, text in document.section(RULES))
    return [int(match[1]) for match in found if match]


# --- words ---


def forbidden_words(document: Document) -> dict[str, str]:
    """The table "| Not this | but |" below its heading: word → what to say."""
    words = {}
    for _, text in document.section(FORBIDDEN_WORDS):
        cells = [cell.strip() for cell in text.strip().strip("|").split("|")]
        if len(cells) < 2 or cells[0] == "Not this" or not cells[0].strip("-: "):
            continue
        for word in re.findall(r"`([^`]+)`", cells[0]) or cells[0].split(","):
            words[word.strip()] = cells[1]
    return words


def check_words(path: Path, text: str, words: dict[str, str]) -> list[str]:
    """Forbidden words in a file, as whole words; a member's trailing underscore is none of it."""
    if not words:
        return []
    any_word = re.compile(rf"(?<!\w)({'|'.join(map(re.escape, words))})_?(?!\w)")
    return [
        f"{path.relative_to(ROOT)}:{number}: {match[1]}: say {words[match[1]]}"
        for number, line in enumerate(text.splitlines(), 1)
        for match in any_word.finditer(line)
    ]


def files_with_words() -> list[Path]:
    """Where the glossary holds: native sources and bindings, the package, the tests."""
    below = ("native/src", "native/bindings", "kvstore", "tests")
    return [
        path
        for path in source_files()
        if path.suffix in {".py", ".pyi", ".h", ".cpp"}
        and path.relative_to(ROOT).as_posix().startswith(tuple(f"{one}/" for one in below))
    ]


# --- blocks ---


def command_lines(block: Block) -> Iterator[tuple[int, str]]:
    """A block's commands with their line numbers: "$ …" of a console, every line of a shell."""
    text = block.text.replace("\\\n", " \0")
    number = block.line
    for line in text.splitlines():
        first, number = number, number + 1 + line.count("\0")
        line = line.replace("\0", " ").strip()
        if block.language == "console":
            if not line.startswith("$ "):
                continue
            line = line[2:]
        if line and not line.startswith("#"):
            yield first, line


def check_commands(document: Document) -> list[str]:
    """Every command of ```console and ```sh blocks resolves: programs, options, targets, paths."""
    return [
        f"{document.name}:{number}: {problem}"
        for block in document.blocks
        if block.language in {"console", "sh", "bash"}
        for number, line in command_lines(block)
        for problem in check_line(line)
    ]


def check_code_spans(document: Document) -> list[str]:
    """Commands in `code spans`: as in blocks, but what a span leaves out is not missed."""
    wrong = []
    for number, text in document.prose:
        for span in re.findall(r"`([^`]+)`", text):
            if re.match(r"(make|kvstore|kvstore-master|kvstore-node|python -m) [a-z-]", span):
                problems = check_line(span, whole=False)
                wrong += [f"{document.name}:{number}: {problem}" for problem in problems]
    return wrong


def check_blocks(document: Document, languages: dict[str, Callable[[str], object]]) -> list[str]:
    """Blocks of the given languages: each checker raises, or returns, what is wrong."""
    wrong = []
    for block in document.blocks:
        if block.language in languages:
            try:
                languages[block.language](block.text)
            except Exception as error:  # whatever the checker's library raises
                wrong.append(f"{document.name}:{block.line}: {type(error).__name__}: {error}")
    return wrong


def compile_python(text: str) -> None:
    """Raise SyntaxError unless the text is Python, where `await` may stand at the top."""
    compile(text, "<block>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def load_configuration(text: str) -> None:
    """Raise unless the text is JSON, and valid where it is a configuration of master or node."""
    from kvstore import config
    from kvstore.config import MasterConfig, NodeConfig

    values = json.loads(text)
    common = set(MasterConfig.__struct_fields__) & set(NodeConfig.__struct_fields__)
    kinds: list[tuple[int, type[config.CommonConfig]]] = [
        (len({*values} & ({*kind.__struct_fields__} - common)), kind)
        for kind in (NodeConfig, MasterConfig)
    ]
    shared, kind = max(kinds, key=lambda pair: pair[0])
    if shared:
        config.load(kind, None, values)


def all_of(checks: Iterable[list[str]]) -> str:
    """Everything that the checks found, one sentence a line; "" when nothing."""
    return "\n".join(sentence for found in checks for sentence in found)
