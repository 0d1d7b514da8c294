"""The stubs are those of the .proto files, and no change breaks what is already out there."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

from kvstore import _proto
from kvstore.errors import TABLE, Status
from kvstore.master.model import NodeState

ROOT = Path(__file__).resolve().parents[2]
# What was published last. A release replaces it; between releases only additions pass.
PUBLISHED = ROOT / "tests" / "support" / "published_descriptors.binpb"


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "proto" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> FileDescriptorSet:
    folder = tmp_path_factory.mktemp("proto")
    return FileDescriptorSet.FromString(generator().compile_descriptors(folder))


def committed() -> FileDescriptorSet:
    path = Path(inspect.getfile(_proto)).with_name("descriptors.binpb")
    return FileDescriptorSet.FromString(path.read_bytes())


def stub(file: FileDescriptorProto, suffix: str) -> ModuleType:
    return importlib.import_module(f"kvstore._proto.{Path(file.name).stem}{suffix}")


def test_the_committed_descriptors_are_those_of_the_proto_files(
    compiled: FileDescriptorSet,
) -> None:
    assert committed() == compiled, "run: make proto"


def _without_json_names(file: FileDescriptorProto) -> FileDescriptorProto:
    """protoc writes the default JSON names, the runtime omits them."""
    copy = FileDescriptorProto()
    copy.CopyFrom(file)
    todo = list(copy.message_type)
    for message in todo:
        todo.extend(message.nested_type)
        for field in message.field:
            field.ClearField("json_name")
    return copy


def test_the_stubs_are_those_of_the_proto_files(compiled: FileDescriptorSet) -> None:
    for file in compiled.file:
        found = descriptor_pb2.FileDescriptorProto()
        stub(file, "_pb2").DESCRIPTOR.CopyToProto(found)
        assert _without_json_names(found) == _without_json_names(file), "run: make proto"
        source = Path(inspect.getfile(stub(file, "_pb2"))).with_suffix(".pyi").read_text()
        for message in file.message_type:
            assert f"class {message.name}(" in source, "run: make proto"
            for field in message.field:
                assert f" {field.name}:" in source or f"def {field.name}(" in source


def test_the_grpc_stubs_have_every_method(compiled: FileDescriptorSet) -> None:
    for file in compiled.file:
        for service in file.service:
            servicer = getattr(stub(file, "_pb2_grpc"), f"{service.name}Servicer")
            names = {name for name, _ in inspect.getmembers(servicer, inspect.isfunction)}
            assert names == {method.name for method in service.method}, "run: make proto"


def test_the_stubs_do_not_depend_on_one_version_of_protobuf_or_grpc() -> None:
    for path in Path(inspect.getfile(_proto)).parent.glob("*.py"):
        assert "runtime_version" not in path.read_text()
        assert "GRPC_GENERATED_VERSION" not in path.read_text()


def test_quantities_have_their_unit_in_their_name() -> None:
    quantity = re.compile(r"^\s+u?int(?:32|64) (\w*(?:size|capacity|used|age|uptime|timeout)\w*)")
    for path in (ROOT / "proto/kvstore/v1").glob("*.proto"):
        for line in path.read_text().splitlines():
            found = quantity.match(line)
            assert found is None or re.search(r"_(bytes|ms)$", found[1]), f"{path}: {line}"


def breaking_changes(before: FileDescriptorSet, after: FileDescriptorSet) -> list[str]:
    """What a peer built from `before` would misunderstand in `after`."""
    wrong: list[str] = []
    messages, enums = _flatten(after)
    old_messages, old_enums = _flatten(before)
    for name, message in old_messages.items():
        fields = {f.number: f for f in messages.get(name, DescriptorProto()).field}
        reserved = {
            n
            for r in messages.get(name, DescriptorProto()).reserved_range
            for n in range(r.start, r.end)
        }
        if name not in messages:
            wrong.append(f"{name} is gone")
            continue
        for field in message.field:
            now = fields.get(field.number)
            if now is None:
                if field.number not in reserved:
                    wrong.append(f"{name}.{field.name}: number {field.number} is not reserved")
            elif (now.name, now.type, now.label, now.type_name) != (
                field.name,
                field.type,
                field.label,
                field.type_name,
            ):
                wrong.append(f"{name}.{field.name} changed its name or type")
    for name, enum in old_enums.items():
        values = {v.number: v.name for v in enums.get(name, EnumDescriptorProto()).value}
        wrong += [
            f"{name}.{value.name} changed"
            for value in enum.value
            if values.get(value.number) != value.name
        ]
    return wrong + _changed_methods(before, after)


def _changed_methods(before: FileDescriptorSet, after: FileDescriptorSet) -> list[str]:
    def methods(files: FileDescriptorSet) -> dict[str, tuple[str, str, bool, bool]]:
        return {
            f"{file.package}.{service.name}.{m.name}": (
                m.input_type,
                m.output_type,
                m.client_streaming,
                m.server_streaming,
            )
            for file in files.file
            for service in file.service
            for m in service.method
        }

    now = methods(after)
    return [f"{name} changed" for name, shape in methods(before).items() if now.get(name) != shape]


def _flatten(
    files: FileDescriptorSet,
) -> tuple[dict[str, DescriptorProto], dict[str, EnumDescriptorProto]]:
    messages: dict[str, DescriptorProto] = {}
    enums: dict[str, EnumDescriptorProto] = {}

    def visit(prefix: str, message: DescriptorProto) -> None:
        name = f"{prefix}.{message.name}"
        messages[name] = message
        enums.update({f"{name}.{enum.name}": enum for enum in message.enum_type})
        for nested in message.nested_type:
            visit(name, nested)

    for file in files.file:
        enums.update({f"{file.package}.{enum.name}": enum for enum in file.enum_type})
        for message in file.message_type:
            visit(file.package, message)
    return messages, enums


def test_nothing_that_was_published_breaks(compiled: FileDescriptorSet) -> None:
    published = FileDescriptorSet.FromString(PUBLISHED.read_bytes())
    assert breaking_changes(published, compiled) == []


def test_the_breaking_change_check_sees_each_kind(compiled: FileDescriptorSet) -> None:
    def changed(edit: str) -> list[str]:
        after = FileDescriptorSet()
        after.CopyFrom(compiled)
        by_name = {Path(file.name).stem: file for file in after.file}
        message = next(m for m in by_name["node"].message_type if m.name == "HeartbeatRequest")
        match edit:
            case "type":
                message.field[0].type = descriptor_pb2.FieldDescriptorProto.TYPE_BYTES
            case "number":
                message.field[0].number = 99
            case "name":
                message.field[0].name = "other"
            case "gone":
                del message.field[0]
            case "message":
                by_name["node"].message_type.remove(message)
            case "enum":
                by_name["types"].enum_type[0].value[1].number = 9
            case "method":
                by_name["node"].service[0].method[0].input_type = ".kvstore.v1.HeartbeatRequest"
            case "added":
                added = message.field.add()
                added.CopyFrom(message.field[0])
                added.name, added.number = "added", 99
            case "reserved":
                number = message.field[0].number
                del message.field[0]
                message.reserved_range.add(start=number, end=number + 1)
        return breaking_changes(compiled, after)

    for edit in ("type", "number", "name", "gone", "message", "enum", "method"):
        assert changed(edit), edit
    for edit in ("added", "reserved"):
        assert changed(edit) == [], edit


def test_states_of_the_wire_are_those_of_the_policy_plus_one(compiled: FileDescriptorSet) -> None:
    _, enums = _flatten(compiled)
    names = {v.number: v.name for v in enums["kvstore.v1.NodeState"].value}
    # Which has a mark of its own there (NodeInfo.restarting_ms): older tools know no fifth state.
    told = [state for state in NodeState if state is not NodeState.RESTARTING]
    assert {int(s) + 1: f"NODE_STATE_{s.name}" for s in told} == {
        number: name for number, name in names.items() if number
    }


def test_every_status_has_a_grpc_code() -> None:
    import grpc

    assert set(TABLE) == set(Status)
    for row in TABLE.values():
        assert row.grpc in grpc.StatusCode.__members__
