"""native/src/wire/README.md describes every message of the block protocol as the headers do."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WIRE = ROOT / "native/src/wire"
README = (WIRE / "README.md").read_text()


def message_types() -> dict[str, int]:
    """The enumerators of MessageType, without their k."""
    enum = re.search(r"enum class MessageType.*?\{(.*?)\n\};", (WIRE / "frame.h").read_text(), re.S)
    assert enum is not None
    found = re.findall(r"^\s*k(\w+) = (0x[0-9A-Fa-f]+),", enum.group(1), re.M)
    assert len(found) == enum.group(1).count(" = "), "an enumerator that this test cannot read"
    return {name: int(number, 16) for name, number in found}


def message_fields() -> dict[str, dict[int, str]]:
    """Tag and field of every message, from the `fields` function of its struct."""
    fields = {}
    for header in sorted(WIRE.glob("messages_*.h")):
        structs = re.findall(r"^struct (\w+) \{(.*?)^\};", header.read_text(), re.S | re.M)
        for name, body in structs:
            if "MessageType kType" in body:
                visits = re.findall(r"\bv\.\w+\((\d+), m\.(\w+)", body)
                fields[name] = {int(tag): field for tag, field in visits}
    return fields


def indexed(text: str) -> dict[str, int]:
    """The rows of the index: message and number."""
    rows = re.findall(r"^\| (0x[0-9A-F]{2}) \| (\w+) \|", text, re.M)
    return {name: int(number, 16) for number, name in rows}


def sections(text: str) -> dict[str, tuple[int, str]]:
    """Number and text of every message's section."""
    parts = re.split(r"^#{2,4} ", text, flags=re.M)
    titles = [(re.match(r"(0x[0-9A-F]{2}) (\w+) \(", part), part) for part in parts]
    return {title[2]: (int(title[1], 16), part) for title, part in titles if title is not None}


def described(section: str) -> dict[int, str]:
    return {int(tag): field for tag, field in re.findall(r"^\| (\d+) \| `(\w+)` \|", section, re.M)}


def differences(text: str) -> list[str]:
    """Where the document and the headers disagree."""
    wrong = []
    types = message_types()
    fields = message_fields()
    in_sections = sections(text)
    for name, number in types.items():
        if indexed(text).get(name) != number:
            wrong.append(f"the index lacks 0x{number:02X} {name}")
        section = in_sections.get(name)
        if section is None or section[0] != number:
            wrong.append(f"no section 0x{number:02X} {name}")
        elif described(section[1]) != fields[name]:
            wrong.append(f"{name}: described {described(section[1])}, sent {fields[name]}")
    named = {*indexed(text), *in_sections}
    wrong += [f"{name} is no message" for name in sorted(named - {*types})]
    return wrong


def test_every_message_is_described() -> None:
    assert len(message_types()) > 50 and {*message_types()} == {*message_fields()}
    assert not differences(README), differences(README)


def test_an_omission_is_found() -> None:
    without_row = re.sub(r"^\| 0x84 \| Announce \|.*\n", "", README, flags=re.M)
    assert differences(without_row) == ["the index lacks 0x84 Announce"]
    without_section = README.replace("#### 0x84 Announce (", "#### Announce (")
    assert differences(without_section) == ["no section 0x84 Announce"]
    wrong_number = README.replace("#### 0x84 Announce (", "#### 0x82 Announce (")
    assert differences(wrong_number) == ["no section 0x84 Announce"]


def test_a_wrong_field_is_found() -> None:
    before, announce = README.split("#### 0x84 Announce (")
    for planted in (
        announce.replace("| 7 | `versions` |", "| 8 | `versions` |", 1),
        re.sub(r"^\| 7 \| `versions` .*\n", "", announce, count=1, flags=re.M),
    ):
        assert planted != announce
        wrong = differences(before + "#### 0x84 Announce (" + planted)
        assert len(wrong) == 1 and wrong[0].startswith("Announce: described"), wrong


def test_a_message_that_is_gone_is_found() -> None:
    assert differences(README + "\n#### 0xF0 Ghost (client → master)\n") == ["Ghost is no message"]
