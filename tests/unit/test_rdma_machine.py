"""What the virtual machine of tests/rdma is made from: archive, modules, kernel, command."""

from __future__ import annotations

import lzma
import platform
import shlex
import stat
import struct
from pathlib import Path

import pytest

from tests.rdma import kernel, vm


def unpacked(packed: bytes) -> dict[str, tuple[int, bytes]]:
    """Read a cpio archive as the kernel does (newc: 13 fields of 8 hexadecimal digits)."""
    entries: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert packed[at : at + 6] == b"070701" and at % 4 == 0
        fields = [int(packed[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = packed[at + 110 : at + 110 + name_size]
        assert name.endswith(b"\0")
        begin = (at + 110 + name_size + 3) // 4 * 4
        if name == b"TRAILER!!!\0":
            return entries
        entries[name[:-1].decode()] = (mode, packed[begin : begin + size])
        at = (begin + size + 3) // 4 * 4


def test_an_archive_holds_what_was_put_into_it() -> None:
    entries = {"bin": (stat.S_IFDIR | 0o755, b"")}
    entries |= {f"bin/{'x' * n}": (stat.S_IFREG | 0o755, b"y" * n) for n in range(1, 9)}
    assert unpacked(kernel.archive(entries)) == entries
    assert len(kernel.archive(entries)) % 512 == 0


def module(folder: Path, name: str, depends: str = "", packed: bool = False) -> bytes:
    content = b"\x7fELF\0license=GPL\0depends=" + depends.encode() + b"\0name=" + name.encode()
    file = folder / f"{name}.ko{'.xz' if packed else ''}"
    file.write_bytes(lzma.compress(content) if packed else content)
    return content


def test_modules_come_after_what_they_depend_on(tmp_path: Path) -> None:
    wanted = {name: module(tmp_path, name, "shared-part", packed=True) for name in kernel.MODULES}
    wanted["shared_part"] = module(tmp_path, "shared-part", "lowest")
    wanted["lowest"] = module(tmp_path, "lowest")
    module(tmp_path, "unrelated")
    ordered = kernel.ordered_modules(kernel.module_files(tmp_path))
    assert dict(ordered) == wanted
    assert [name for name, _ in ordered] == ["lowest", "shared_part", *kernel.MODULES]


def test_a_module_that_is_missing_is_named(tmp_path: Path) -> None:
    for name in kernel.MODULES:
        module(tmp_path, name, "absent" if name == "veth" else "")
    with pytest.raises(kernel.VmError, match="no module absent"):
        kernel.ordered_modules(kernel.module_files(tmp_path))


def image(payload: bytes) -> bytes:
    """Return a bzImage of four setup sectors whose payload stands 100 bytes behind them."""
    setup = bytearray(5 * 512)
    setup[0x1F1] = 4
    struct.pack_into("<II", setup, 0x248, 100, len(payload))
    return bytes(setup) + bytes(100) + payload + b"after it"


def test_a_kernel_is_uncompressed() -> None:
    elf = b"\x7fELF" + bytes(range(256)) * 20
    size = struct.pack("<I", len(elf))
    assert kernel.uncompressed_kernel(image(lzma.compress(elf) + size)) == elf


@pytest.mark.parametrize("payload", [b"\x28\xb5\x2f\xfdzstd", lzma.compress(b"no ELF") + bytes(4)])
def test_an_unknown_kernel_is_left_as_it_is(payload: bytes) -> None:
    assert kernel.uncompressed_kernel(image(payload)) == image(payload)


def test_a_command_is_passed_word_by_word(tmp_path: Path) -> None:
    command = ["echo", "$HOME; rm x", "it's", ""]
    environment = {"A": "a b'c", "PWD": "/there", "BASH_FUNC_x%%": "() { :; }"}
    lines = vm.command_script(command, environment, tmp_path, None).splitlines()
    assert [shlex.split(line) for line in lines] == [
        ["export", "A=a b'c"],
        ["cd", str(tmp_path), "||", "exit", "125"],
        ["exec", *command],
    ]


def test_a_limited_command_loses_the_capability(tmp_path: Path) -> None:
    last = vm.command_script(["true"], {}, tmp_path, 64 << 10).splitlines()[-1]
    words = shlex.split(last)
    assert "--memlock=65536:65536" in words and "--bounding-set=-ipc_lock" in words
    assert words[-1] == "true"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "say what to run"),
        (["--memlock", "much", "--", "true"], "not a size"),
        (["--accel", "xen", "--", "true"], "invalid choice"),
    ],
)
def test_a_wrong_command_line_is_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        vm.main(arguments)
    assert refused.value.code == 2
    assert said in capsys.readouterr().err


def test_a_machine_without_qemu_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vm, "find_program", lambda _: None)
    assert vm.main(["--", "true"]) == vm.NO_VM
    assert "sudo apt-get install qemu-system-x86" in capsys.readouterr().err


def test_another_processor_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert vm.main(["--", "true"]) == vm.NO_VM
    assert "not linux on aarch64" in capsys.readouterr().err
