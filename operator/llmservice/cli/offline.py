"""The commands that need no cluster: ``crds``, ``validate`` and ``render``."""

import argparse
import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from llmservice.api import names
from llmservice.api.schema import crd_yaml
from llmservice.cli.documents import DocumentError, dump_documents, load_services, service_name
from llmservice.cli.options import EXIT_INVALID
from llmservice.core.config import Config
from llmservice.core.observed import Manifest, Observed, ServiceKey, ServiceObject
from llmservice.core.reconcile import desired_children
from llmservice.core.validation import InvalidSpec, validate_document

_RENDER_UID = "00000000-0000-0000-0000-000000000000"
"""Stands for the uid that the API server will give the LLMService."""


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands."""
    command = commands.add_parser("crds", help="print the CustomResourceDefinition")
    command.set_defaults(run=_crds)
    command = commands.add_parser("validate", help="judge manifests without a cluster")
    command.add_argument("files", nargs="+", metavar="FILE", help="manifest, or - for stdin")
    command.add_argument("-o", "--output", choices=("text", "json"), default="text")
    command.set_defaults(run=_validate)
    command = commands.add_parser("render", help="print what the operator would apply")
    command.add_argument("files", nargs="+", metavar="FILE", help="manifest, or - for stdin")
    command.add_argument("-n", "--namespace", help="namespace, if the manifest names none")
    command.add_argument("-o", "--output", choices=("yaml", "json"), default="yaml")
    command.set_defaults(run=_render)


def _crds(_: argparse.Namespace) -> int:
    """Print the CustomResourceDefinition."""
    sys.stdout.write(crd_yaml())
    return 0


def _validate(arguments: argparse.Namespace) -> int:
    """Judge manifests; one line per violation."""
    findings = list(_findings(arguments.files))
    if arguments.output == "json":
        print(json.dumps(findings, indent=2))
    else:
        for item in findings:
            for problem in item["violations"]:
                print(f"{item['file']}: {item['name']}: {problem['field']}: {problem['message']}")
        bad = sum(bool(item["violations"]) for item in findings)
        print(f"{len(findings) - bad} valid, {bad} invalid")
    return EXIT_INVALID if any(item["violations"] for item in findings) else 0


def _findings(paths: list[str]) -> Iterator[dict[str, Any]]:
    for path in paths:
        try:
            documents = load_services(path)
        except DocumentError as error:
            yield _finding(path, "-", [{"field": "yaml", "message": str(error)}])
            continue
        if not documents:
            yield _finding(path, "-", [{"field": "kind", "message": f"no {names.KIND} in it"}])
        for document in documents:
            problems = [
                {"field": violation.field, "message": violation.message}
                for violation in validate_document(document)
            ]
            yield _finding(path, service_name(document), problems)


def _finding(path: str, name: str, violations: list[dict[str, str]]) -> dict[str, Any]:
    return {"file": path, "name": name, "violations": violations}


def _render(arguments: argparse.Namespace) -> int:
    """Print exactly what the operator would apply for the manifests, in its order."""
    manifests: list[Manifest] = []
    for path in arguments.files:
        try:
            documents = load_services(path)
        except DocumentError as error:
            print(f"{path}: {error}", file=sys.stderr)
            return EXIT_INVALID
        for document in documents:
            problems = validate_document(document)
            for problem in problems:
                print(f"{path}: {service_name(document)}: {problem}", file=sys.stderr)
            if problems:
                return EXIT_INVALID
            manifests.extend(render_document(document, arguments.namespace))
    if arguments.output == "json":
        print(json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests}, indent=2))
    else:
        print(dump_documents(manifests), end="")
    return 0


def render_document(document: Manifest, namespace: str | None) -> list[Manifest]:
    """The children of one valid LLMService manifest."""
    metadata = document["metadata"]
    key = ServiceKey(namespace or metadata.get("namespace") or "default", metadata["name"])
    service = ServiceObject(
        key, metadata.get("uid", _RENDER_UID), metadata.get("generation", 1), document["spec"], {}
    )
    observed = Observed(service, now=datetime.fromtimestamp(0, UTC))
    rendered = desired_children(observed, Config())
    if isinstance(rendered, InvalidSpec):
        raise DocumentError(rendered.message)
    return rendered
