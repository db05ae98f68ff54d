"""``llmservice metrics-server``: serves the metrics that HPAs scale by."""

import argparse
from pathlib import Path


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``metrics-server`` to the command line."""
    command = commands.add_parser(
        "metrics-server", help="serve HPAs their metrics (what its pods do)"
    )
    command.add_argument("--namespace", required=True, help="where it runs")
    command.add_argument(
        "--name", required=True, help="of its Service, and of the release's Secret and ClusterRole"
    )
    command.add_argument("--namespaces", default="", help="comma-separated; default: all")
    command.add_argument("--port", type=int, default=8443, help="of the API")
    command.add_argument("--probe-port", type=int, default=8080, help="health and metrics")
    command.add_argument("--kubeconfig", help="default: the pod's service account, or as kubectl")
    command.add_argument("--context", help="context of the kubeconfig")
    command.set_defaults(run=_run)


def _run(parsed: argparse.Namespace) -> int:
    # Imported late: it loads the Kubernetes client, which takes half a second.
    from llmservice.adapters.kube import Credentials  # noqa: PLC0415
    from llmservice.handlers import metrics_server  # noqa: PLC0415

    kubeconfig = Path(parsed.kubeconfig) if parsed.kubeconfig else None
    return metrics_server.main(
        metrics_server.MetricsServerConfig(
            namespace=parsed.namespace,
            name=parsed.name,
            namespaces=tuple(n.strip() for n in parsed.namespaces.split(",") if n.strip()),
            port=parsed.port,
            probe_port=parsed.probe_port,
            credentials=Credentials(kubeconfig, parsed.context),
        )
    )
