"""The command line: ``llmservice COMMAND``, one module here for each that does not fit a screen.

Exit codes: 0 done; 1 the input is invalid, a plan infeasible, or the service is not ready; 2 wrong
usage; 3 the cluster cannot be reached.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from llmservice.adapters.ports import ClusterError
from llmservice.cli import autoscale, judge, metrics_server, offline, plan, rollout, route_agent
from llmservice.cli.options import (
    POD_OR_KUBECTL,
    add_credentials,
    add_service_options,
    comma_separated,
    credentials,
)
from llmservice.core.autoscaling.budget import Budget, parse_budgets
from llmservice.core.config import Config

_EXIT_UNREACHABLE = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        code: int = parsed.run(parsed)
        sys.stdout.flush()
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return _EXIT_UNREACHABLE
    except BrokenPipeError:
        # The reader (head, less) has seen enough; nothing may be written when Python ends, either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llmservice", description="Run vLLM inference services on Kubernetes."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_operator(commands)
    offline.register(commands)
    plan.register(commands)
    _add_status(commands)
    rollout.register(commands)
    judge.register(commands)
    autoscale.register(commands)
    route_agent.register(commands)
    metrics_server.register(commands)
    return parser


def _add_status(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("status", help="say how a service is, and what to do")
    command.add_argument("name", nargs="?", help="LLMService; all of the namespace when left out")
    add_service_options(command)
    command.add_argument("-w", "--watch", action="store_true", help="until it is ready or stalled")
    command.add_argument("-o", "--output", choices=("text", "json"), default="text")
    command.set_defaults(run=_run_status)


def _run_status(parsed: argparse.Namespace) -> int:
    # Imported late: it loads the Kubernetes client, which takes half a second.
    from llmservice.cli.status import run  # noqa: PLC0415

    return run(parsed)


def _add_operator(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("operator", help="run the operator (what its pods do)")
    add_credentials(command, POD_OR_KUBECTL)
    command.add_argument(
        "--namespaces", type=comma_separated, default=(), help="comma-separated; default: all"
    )
    command.add_argument("--lease-namespace", default="llmservice-system")
    command.add_argument("--lease-name", default="llmservice-operator")
    command.add_argument("--port", type=int, default=8080, help="health and metrics")
    command.add_argument("--workers", type=int, default=8, help="reconciles at a time")
    images = Config()
    command.add_argument(
        "--operator-image", default=images.operator_image, help="this one, for routers' agents"
    )
    command.add_argument("--router-image", default=images.router_image, help="Envoy, for routers")
    command.add_argument(
        "--max-concurrent-rollouts",
        type=int,
        default=0,
        metavar="N",
        help="canary rollouts at a time, over all services; 0 for any number",
    )
    command.add_argument(
        "--max-rollout-devices",
        type=int,
        default=0,
        metavar="N",
        help="accelerators that canaries may hold at a time, over all services; 0 for any number",
    )
    command.add_argument(
        "--gpu-budgets",
        type=_budgets,
        default=(),
        metavar="JSON",
        help="devices that several services share, as the chart's gpuBudgets",
    )
    command.add_argument(
        "--engine-metrics",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="ask engines what their KV cache holds; needs pods within reach",
    )
    command.set_defaults(run=_run_operator)


def _budgets(text: str) -> tuple[Budget, ...]:
    try:
        return parse_budgets(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _run_operator(parsed: argparse.Namespace) -> int:
    from llmservice.handlers import operator  # noqa: PLC0415
    from llmservice.handlers.config import OperatorConfig  # noqa: PLC0415

    return operator.main(
        OperatorConfig(
            namespaces=parsed.namespaces,
            lease_namespace=parsed.lease_namespace,
            lease_name=parsed.lease_name,
            metrics_port=parsed.port,
            credentials=credentials(parsed),
            workers=parsed.workers,
            core=Config(
                operator_image=parsed.operator_image,
                router_image=parsed.router_image,
                engine_metrics=parsed.engine_metrics,
                max_concurrent_rollouts=parsed.max_concurrent_rollouts,
                max_rollout_devices=parsed.max_rollout_devices,
                budgets=parsed.gpu_budgets,
            ),
        )
    )
