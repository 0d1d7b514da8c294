"""Reads manifests: YAML files, folders of them, and kustomizations."""

from __future__ import annotations

import copy
import sys
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import jsonpatch
import yaml

from deploy.tools.objects import Object, merge

_KUSTOMIZATION = "kustomization.yaml"
_KEYS = {"apiVersion", "kind", "resources", "patches", "namespace"}


class ManifestError(Exception):
    """A manifest cannot be read; the message says where and why."""


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands there twice, as kubectl does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Make a mapping of its node."""
        keys = [str(self.construct_object(key)) for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {twice!r} stands there twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def parse(text: str, where: str) -> list[Object]:
    """Read the objects of a stream of YAML documents.

    Raises:
        ManifestError: It is no YAML, or holds something else than objects of Kubernetes.
    """
    try:
        documents = [one for one in yaml.load_all(text, Loader=_Loader) if one is not None]
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise ManifestError(f"{where}: {said}") from None
    found: list[Object] = []
    for number, one in enumerate(documents, 1):
        items = one.get("items") if isinstance(one, dict) and one.get("kind") == "List" else [one]
        for item in items if isinstance(items, list) else [items]:
            found.append(_object(item, f"{where}: document {number}"))
    return found


def _object(one: Any, where: str) -> Object:
    """Refuse what has no kind, version and name: whatever else is wrong is the schemas' part."""
    found: Object = one if isinstance(one, dict) else {}
    names = [found.get(key) for key in ("apiVersion", "kind")]
    metadata = found.get("metadata")
    if not all(isinstance(name, str) and name for name in names) or not isinstance(metadata, dict):
        raise ManifestError(f"{where} is no object of Kubernetes")
    if not isinstance(metadata.get("name"), str) or not metadata["name"]:
        raise ManifestError(f"{where} ({found['kind']}) has no name")
    return found


def read(path: Path) -> list[Object]:
    """Read the objects of a file, of a folder with a kustomization, or of standard input (-).

    Raises:
        ManifestError: It cannot be read.
    """
    if str(path) == "-":
        return parse(sys.stdin.read(), "standard input")
    if path.is_dir():
        return _kustomized(path, ())
    try:
        return parse(path.read_text(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def _kustomized(folder: Path, above: tuple[Path, ...]) -> list[Object]:
    """Apply a kustomization: the resources that it names, and JSON patches of them."""
    file = folder / _KUSTOMIZATION
    if folder.resolve() in above:
        raise ManifestError(f"{file}: names itself")
    if not file.is_file():
        raise ManifestError(f"{folder}: has no {_KUSTOMIZATION}; name its files")
    try:
        return _built(folder, file, above)
    except (AttributeError, KeyError, OSError, TypeError, yaml.YAMLError) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ManifestError(f"{file}: not understood: {said}") from None


def _built(folder: Path, file: Path, above: tuple[Path, ...]) -> list[Object]:
    loaded = yaml.safe_load(file.read_text())
    if not isinstance(loaded, dict) or set(loaded) - _KEYS:
        raise ManifestError(f"{file}: understood are only {', '.join(sorted(_KEYS))}")
    objects: list[Object] = []
    for name in loaded.get("resources") or []:
        resource = folder / name
        if resource.is_dir():
            objects += _kustomized(resource, (*above, folder.resolve()))
        elif ".." in Path(name).parts:
            raise ManifestError(f"{file}: kustomize takes no file outside of its folder: {name}")
        else:
            objects += read(resource)
    for patch in loaded.get("patches") or []:
        text = patch["patch"] if "patch" in patch else (folder / patch["path"]).read_text()
        objects = _patched(objects, patch.get("target") or {}, yaml.safe_load(text), file)
    return objects


def _patched(objects: list[Object], target: Object, patch: Any, file: Path) -> list[Object]:
    done, found = [], False
    for one in objects:
        named = {"kind": one["kind"], "name": one["metadata"]["name"]}
        if any(named.get(key) != value for key, value in target.items()):
            done.append(one)
            continue
        found = True
        try:
            done.append(
                jsonpatch.apply_patch(copy.deepcopy(one), patch)
                if isinstance(patch, list)
                else merge(one, patch)
            )
        except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException) as error:
            raise ManifestError(f"{file}: {named['kind']}/{named['name']}: {error}") from None
    if not found:
        raise ManifestError(f"{file}: a patch for {target} finds no object")
    return done
