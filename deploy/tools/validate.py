"""Checks manifests as a cluster would, and for what it would ignore or regret, without a cluster.

Kinds of Kubernetes are checked by the schemas of kubernetes-validate, others by CRDs from a folder;
unknown fields are refused. Then come the rules of this folder, a module each.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from deploy.tools import groups, pods, product, references, security
from deploy.tools.documents import ManifestError, read
from deploy.tools.objects import Object, Objects, Pod, name_of
from deploy.tools.schemas import Schemas

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = "1.33"
OWN_CRDS = Path(__file__).resolve().parent / "crds"


@dataclass(frozen=True)
class Problem:
    """Something that is wrong with an object."""

    where: str
    """Kind and name of the object, and a path within it."""
    sentence: str

    def __str__(self) -> str:
        """One line."""
        return f"{self.where}: {self.sentence}"


def rbg_crds() -> Path:
    """Folder of RBG's CRDs: KVSTORE_RBG_CRDS, else the one beside the repository."""
    given = os.environ.get("KVSTORE_RBG_CRDS")
    return Path(given) if given else ROOT.parent / "shared" / "deploy" / "rbg-crds"


def validate(documents: list[Object], schemas: Schemas, level: str = "privileged") -> list[Problem]:
    """Check objects that are applied together.

    Args:
        documents: the objects.
        schemas: of their kinds.
        level: Pod Security level of namespaces that are not among the objects.

    Returns:
        What is wrong. Rules are checked only once the schemas find nothing.
    """
    found = [Problem(name_of(one), text) for one in documents for text in schemas.problems(one)]
    if found:
        return found
    unchecked = [one for one in documents if schemas.skips(one)]
    try:
        return _by_rules(Objects(documents), schemas, level)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if not unchecked:
            raise
        # The rules rely on a shape that no schema has checked.
        why = f"has another shape than its kind ({type(error).__name__}: {error}); "
        return [Problem(name_of(one), why + schemas.skips(one)) for one in unchecked]


def _by_rules(objects: Objects, schemas: Schemas, level: str) -> list[Problem]:
    found: list[Problem] = []
    for pod in objects.pods:
        found += _pod(pod, objects, schemas, level)
    for check in (references.check, groups.check):
        found += [Problem(name_of(one), text) for one, text in check(objects)]
    return found


def _pod(pod: Pod, objects: Objects, schemas: Schemas, level: str) -> Iterator[Problem]:
    where = f"{name_of(pod.owner)} {pod.where}".strip()
    if pod.where.endswith(("templateRef", "].template")):  # no CRD has a schema of these
        template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "merged"}}
        wrong = list(schemas.problems({**template, "template": pod.template}))
        if wrong:
            yield from (Problem(where, text) for text in wrong)
            return
    for text in pods.check(pod, objects):
        yield Problem(where, text)
    for text in product.check(pod, objects):
        yield Problem(where, text)
    for text in security.check(pod, security.level_of(pod, objects, level)):
        yield Problem(where, text)


_EPILOG = """\b
Example:
  python -m deploy.tools.validate deploy/rbg/store.yaml
  helm template kvstore deploy/helm/kvstore | python -m deploy.tools.validate -
Files named together are checked as if they were applied together. A folder is a kustomization.
Exit code 1: something is wrong; 2: a file or option cannot be read.
"""


@click.command("validate", epilog=_EPILOG)
@click.argument("paths", nargs=-1, required=True)
@click.option("--crds", multiple=True, type=click.Path(), help="Folder with CRDs; repeatable.")
@click.option("--kubernetes", default=KUBERNETES, show_default=True, help="Version of the schemas.")
@click.option(
    "--pod-security",
    type=click.Choice(security.LEVELS),
    default="privileged",
    help="Level of namespaces that are not among the objects.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(
    paths: tuple[str, ...], crds: tuple[str, ...], kubernetes: str, pod_security: str, as_json: bool
) -> None:
    """Check manifests for what a cluster would refuse, ignore or regret."""
    folders = [Path(one) for one in crds] or [rbg_crds()]
    try:
        documents = [one for path in paths for one in read(Path(path))]
    except ManifestError as error:
        click.echo(f"validate: {error}", err=True)
        sys.exit(2)
    schemas = Schemas(kubernetes, [OWN_CRDS, *folders])
    problems = validate(documents, schemas, pod_security)
    skipped = [f"{name_of(one)}: {why}" for one in documents if (why := schemas.skips(one))]
    if as_json:
        said = {"objects": len(documents), "skipped": skipped}
        click.echo(json.dumps({**said, "problems": [asdict(problem) for problem in problems]}))
    else:
        for line in skipped:
            click.echo(f"not checked by a schema: {line}", err=True)
        for problem in problems:
            click.echo(str(problem))
        click.echo(f"{len(documents)} objects, {len(problems)} problems")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
