"""The command line: ``llmservice operator | render | validate | crds | status``.

Exit codes: 0 done; 1 the input is invalid or the service is not ready; 2 wrong usage;
3 the cluster cannot be reached.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from llmservice.cli import offline


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parsed = _parser().parse_args(arguments)
    code: int = parsed.run(parsed)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llmservice", description="Run vLLM inference services on Kubernetes."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_operator(commands)
    _add_offline(commands)
    _add_status(commands)
    return parser


def _add_offline(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("crds", help="print the CustomResourceDefinition")
    command.set_defaults(run=offline.crds)
    command = commands.add_parser("validate", help="judge manifests without a cluster")
    command.add_argument("files", nargs="+", metavar="FILE", help="manifest, or - for stdin")
    command.add_argument("-o", "--output", choices=("text", "json"), default="text")
    command.set_defaults(run=offline.validate)
    command = commands.add_parser("render", help="print what the operator would apply")
    command.add_argument("files", nargs="+", metavar="FILE", help="manifest, or - for stdin")
    command.add_argument("-n", "--namespace", help="namespace, if the manifest names none")
    command.add_argument("-o", "--output", choices=("yaml", "json"), default="yaml")
    command.set_defaults(run=offline.render)


def _add_status(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("status", help="say how a service is, and what to do")
    command.add_argument("name", nargs="?", help="LLMService; all of the namespace when left out")
    command.add_argument("-n", "--namespace", default="default")
    command.add_argument("-w", "--watch", action="store_true", help="until it is ready or stalled")
    command.add_argument("-o", "--output", choices=("text", "json"), default="text")
    command.add_argument("--kubeconfig", help="default: as kubectl finds it")
    command.add_argument("--context", help="context of the kubeconfig")
    command.set_defaults(run=_run_status)


def _run_status(parsed: argparse.Namespace) -> int:
    # Imported late: it loads the Kubernetes client, which takes half a second.
    from llmservice.cli.status import run  # noqa: PLC0415

    return run(parsed)


def _add_operator(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("operator", help="run the operator (what its pods do)")
    command.add_argument("--kubeconfig", help="default: the pod's service account, or as kubectl")
    command.add_argument("--context", help="context of the kubeconfig")
    command.add_argument("--namespaces", default="", help="comma-separated; default: all")
    command.add_argument("--lease-namespace", default="llmservice-system")
    command.add_argument("--lease-name", default="llmservice-operator")
    command.add_argument("--port", type=int, default=8080, help="health and metrics")
    command.add_argument("--workers", type=int, default=8, help="reconciles at a time")
    command.set_defaults(run=_run_operator)


def _run_operator(parsed: argparse.Namespace) -> int:
    from llmservice.adapters.kube import Credentials  # noqa: PLC0415
    from llmservice.handlers import operator  # noqa: PLC0415
    from llmservice.handlers.config import OperatorConfig  # noqa: PLC0415

    kubeconfig = Path(parsed.kubeconfig) if parsed.kubeconfig else None
    return operator.main(
        OperatorConfig(
            namespaces=tuple(n.strip() for n in parsed.namespaces.split(",") if n.strip()),
            lease_namespace=parsed.lease_namespace,
            lease_name=parsed.lease_name,
            metrics_port=parsed.port,
            credentials=Credentials(kubeconfig, parsed.context),
            workers=parsed.workers,
        )
    )
