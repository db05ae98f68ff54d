"""The commands that need no cluster: ``crds``, ``validate`` and ``render``."""

import argparse
import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from llmservice.api import names
from llmservice.api.schema import crd_yaml
from llmservice.cli.documents import DocumentError, dump_documents, load_documents
from llmservice.core.config import Config
from llmservice.core.observed import Manifest, Observed, ServiceKey, ServiceObject
from llmservice.core.reconcile import desired_children
from llmservice.core.validation import InvalidSpec, validate_document

RENDER_UID = "00000000-0000-0000-0000-000000000000"
"""Stands for the uid that the API server will give the LLMService."""

EXIT_INVALID, EXIT_USAGE = 1, 2
"""Of every command: the input cannot be used; the command line cannot."""


def crds(_: argparse.Namespace) -> int:
    """Print the CustomResourceDefinition."""
    sys.stdout.write(crd_yaml())
    return 0


def validate(arguments: argparse.Namespace) -> int:
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
            documents = [d for d in load_documents(path) if d.get("kind") == names.KIND]
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


def service_name(document: Manifest) -> str:
    """The name of a manifest, whatever its state; ``-`` for none."""
    metadata = document.get("metadata")
    return str(metadata.get("name", "-")) if isinstance(metadata, dict) else "-"


def render(arguments: argparse.Namespace) -> int:
    """Print exactly what the operator would apply for the manifests, in its order."""
    manifests: list[Manifest] = []
    for path in arguments.files:
        try:
            documents = [d for d in load_documents(path) if d.get("kind") == names.KIND]
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
        key, metadata.get("uid", RENDER_UID), metadata.get("generation", 1), document["spec"], {}
    )
    observed = Observed(service, now=datetime.fromtimestamp(0, UTC))
    rendered = desired_children(observed, Config())
    if isinstance(rendered, InvalidSpec):
        raise DocumentError(rendered.message)
    return rendered
