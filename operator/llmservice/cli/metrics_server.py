"""``llmservice metrics-server``: serves the metrics that HPAs scale by."""

import argparse

from llmservice.cli.options import POD_OR_KUBECTL, add_credentials, comma_separated, credentials


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``metrics-server`` to the command line."""
    command = commands.add_parser(
        "metrics-server", help="serve HPAs their metrics (what its pods do)"
    )
    command.add_argument("--namespace", required=True, help="where it runs")
    command.add_argument(
        "--name", required=True, help="of its Service, and of the release's Secret and ClusterRole"
    )
    command.add_argument(
        "--namespaces", type=comma_separated, default=(), help="comma-separated; default: all"
    )
    command.add_argument("--port", type=int, default=8443, help="of the API")
    command.add_argument(
        "--no-external-metrics",
        dest="external_metrics",
        action="store_false",
        help="leave external.metrics.k8s.io to others, such as KEDA",
    )
    command.add_argument("--probe-port", type=int, default=8080, help="health and metrics")
    add_credentials(command, POD_OR_KUBECTL)
    command.set_defaults(run=_run)


def _run(parsed: argparse.Namespace) -> int:
    # Imported late: it loads the Kubernetes client, which takes half a second.
    from llmservice.handlers import metrics_server  # noqa: PLC0415

    return metrics_server.main(
        metrics_server.MetricsServerConfig(
            namespace=parsed.namespace,
            name=parsed.name,
            namespaces=parsed.namespaces,
            port=parsed.port,
            external_metrics=parsed.external_metrics,
            probe_port=parsed.probe_port,
            credentials=credentials(parsed),
        )
    )
