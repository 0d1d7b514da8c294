"""Schemas of objects: core kinds by kubernetes-validate, others by their CRDs, both strictly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate

from deploy.tools.objects import Object

_KEPT = (
    *("type", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems"),
    *("maxItems", "required", "multipleOf", "uniqueItems", "minProperties", "maxProperties"),
)
_STRING = {"type": "string"}
_LABEL = {
    "type": "string",
    "maxLength": 63,
    "pattern": "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$",
}
_METADATA = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "maxLength": 253, "pattern": "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"},
        "namespace": _STRING,
        "generateName": _STRING,
        "labels": {"type": "object", "additionalProperties": _LABEL},
        "annotations": {"type": "object", "additionalProperties": _STRING},
        "finalizers": {"type": "array", "items": _STRING},
    },
}
_NEEDED = {"workloads.x-k8s.io": "KVSTORE_RBG_CRDS"}


def _bare(schema: dict[str, Any]) -> bool:
    """Say whether it is an object of which nothing is declared: templates' metadata, in CRDs."""
    declares = ("properties", "additionalProperties", "x-kubernetes-preserve-unknown-fields")
    return schema.get("type") == "object" and not any(key in schema for key in declares)


def strict(schema: Any, root: bool = False) -> dict[str, Any]:
    """Turn a CRD's schema into one that refuses what the API server would drop.

    Args:
        schema: openAPIV3Schema, or a part of it.
        root: it is the whole one.
    """
    if schema.get("x-kubernetes-int-or-string"):
        text: dict[str, Any] = {"type": "string"}
        if "pattern" in schema:
            text["pattern"] = schema["pattern"]
        return {"anyOf": [{"type": "integer"}, text]}
    made = {key: schema[key] for key in _KEPT if key in schema}
    if "properties" in schema:
        made["properties"] = {key: strict(one) for key, one in schema["properties"].items()}
        # Defaults are set before a CRD's object is validated.
        defaulted = {key for key, one in schema["properties"].items() if "default" in one}
        made["required"] = [key for key in schema.get("required", ()) if key not in defaulted]
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made["additionalProperties"] = False
    elif _bare(schema):
        return _METADATA
    if root:
        made["properties"] |= {"apiVersion": _STRING, "kind": _STRING, "metadata": _METADATA}
    further = schema.get("additionalProperties")
    if further is not None:
        made["additionalProperties"] = strict(further) if isinstance(further, dict) else further
    if "items" in schema:
        made["items"] = strict(schema["items"])
    if schema.get("nullable") and "type" in made:
        made["type"] = [made["type"], "null"]
    return made


class Schemas:
    """The schemas of one version of Kubernetes and of some CRDs."""

    def __init__(self, kubernetes: str, folders: list[Path]) -> None:
        """Read the CRDs.

        Args:
            kubernetes: version whose schemas of core kinds are taken, such as 1.33.
            folders: with CRDs as JSON files; one that is missing is noted in `missing`.
        """
        self._kubernetes = kubernetes
        self._schemas: dict[tuple[str, str], dict[str, Any]] = {}
        self._checked: dict[str, list[str]] = {}
        self.groups: set[str] = set()
        """API groups of the CRDs."""
        for path in sorted(file for folder in folders for file in folder.glob("*.json")):
            spec = json.loads(path.read_text())["spec"]
            self.groups.add(spec["group"])
            for version in spec["versions"]:
                kind = (f"{spec['group']}/{version['name']}", spec["names"]["kind"])
                self._schemas[kind] = strict(version["schema"]["openAPIV3Schema"], root=True)

    def skips(self, one: Object) -> str:
        """Why an object is not checked by a schema; empty when it is."""
        group = str(one["apiVersion"]).rpartition("/")[0]
        if group in _NEEDED and group not in self.groups:
            return f"no CRDs of {group}: set {_NEEDED[group]} to a folder with them"
        return ""

    def problems(self, one: Object) -> Iterator[str]:
        """Check an object; yields a sentence for each thing that is wrong."""
        if self.skips(one):
            return
        text = json.dumps(one, sort_keys=True, default=str)
        if text not in self._checked:  # a schema of Kubernetes takes a second to load
            self._checked[text] = list(self._problems(one))
        yield from self._checked[text]

    def _problems(self, one: Object) -> Iterator[str]:
        kind = (one["apiVersion"], one["kind"])
        if kind in self._schemas:
            validator = jsonschema.Draft202012Validator(self._schemas[kind])
            for error in sorted(validator.iter_errors(one), key=lambda e: list(map(str, e.path))):
                yield f"{_path(error)}: {error.message[:300]}"
            return
        try:
            kubernetes_validate.validate(one, self._kubernetes, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{_path(error)}: {str(error.message)[:300]}"
        except kubernetes_validate.SchemaNotFoundError:
            yield f"{kind[0]} {kind[1]} is no kind of Kubernetes {self._kubernetes} or of the CRDs"


def _path(error: jsonschema.ValidationError) -> str:
    return ".".join(map(str, error.absolute_path)) or "the object"
