"""What several commands have in common: options and what they mean, exit codes."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmservice.adapters.kube import Credentials

EXIT_INVALID, EXIT_USAGE = 1, 2
"""The input cannot be used; the command line cannot."""

POD_OR_KUBECTL = "the pod's service account, or as kubectl"


def add_credentials(command: argparse.ArgumentParser, default: str) -> None:
    """``--kubeconfig`` (whose ``default`` the help names) and ``--context``."""
    command.add_argument("--kubeconfig", help=f"default: {default}")
    command.add_argument("--context", help="context of the kubeconfig")


def add_service_options(command: argparse.ArgumentParser) -> None:
    """Where a command for people finds its service."""
    command.add_argument("-n", "--namespace", help="default: the context's, as kubectl")
    add_credentials(command, "as kubectl finds it")


def credentials(parsed: argparse.Namespace) -> "Credentials":
    """What :func:`add_credentials` was told."""
    # Imported late: it loads the Kubernetes client, which takes half a second.
    from llmservice.adapters.kube import Credentials  # noqa: PLC0415

    return Credentials(Path(parsed.kubeconfig) if parsed.kubeconfig else None, parsed.context)


def comma_separated(text: str) -> tuple[str, ...]:
    """The type of a list."""
    return tuple(word.strip() for word in text.split(",") if word.strip())
