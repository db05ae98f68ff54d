"""``llmservice route-agent``: the process beside Envoy in a router's pod."""

import argparse
from pathlib import Path

from llmservice.api import names
from llmservice.cli.options import POD_OR_KUBECTL, add_credentials, credentials


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``route-agent`` to the command line."""
    command = commands.add_parser("route-agent", help="lead an Envoy (what router pods do)")
    command.add_argument("--service", required=True, metavar="NAME", help="LLMService")
    command.add_argument("--namespace", required=True, help="where it is")
    command.add_argument("--folder", required=True, type=Path, help="where Envoy's files go")
    for option, port, words in (
        ("--agent-port", names.ROUTER_AGENT_PORT, "of the agent itself"),
        ("--router-port", names.ROUTER_PORT, "on which Envoy serves"),
        ("--admin-port", names.ROUTER_ADMIN_PORT, "on which Envoy takes orders, loopback only"),
    ):
        command.add_argument(option, type=int, default=port, metavar="PORT", help=words)
    command.add_argument(
        "--drain-path",
        default="/drain",
        metavar="PATH",
        help="where it is told that the pod stops; nobody else should know it",
    )
    command.add_argument(
        "--drain-seconds",
        type=float,
        default=300,
        metavar="SECONDS",
        help="at most, for requests to end when the pod is stopped",
    )
    command.add_argument(
        "--propagation-seconds",
        type=float,
        default=5,
        metavar="SECONDS",
        help="at least, before that: new requests may still come",
    )
    add_credentials(command, POD_OR_KUBECTL)
    command.set_defaults(run=_run)


def _run(parsed: argparse.Namespace) -> int:
    # Imported late: it loads the Kubernetes client, which takes half a second.
    from llmservice.handlers import route_agent  # noqa: PLC0415

    return route_agent.main(
        route_agent.AgentConfig(
            service=parsed.service,
            namespace=parsed.namespace,
            folder=parsed.folder,
            agent_port=parsed.agent_port,
            router_port=parsed.router_port,
            admin_port=parsed.admin_port,
            drain_path=parsed.drain_path,
            drain_seconds=parsed.drain_seconds,
            propagation_seconds=parsed.propagation_seconds,
            credentials=credentials(parsed),
        )
    )
