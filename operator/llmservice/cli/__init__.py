"""The command line: ``llmservice COMMAND``, one module here for each that does not fit a screen.

Exit codes: 0 done; 1 the input is invalid, a plan infeasible, or the service is not ready; 2 wrong
usage; 3 the cluster cannot be reached.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from llmservice.adapters.ports import ClusterError
from llmservice.cli import autoscale, judge, metrics_server, offline, plan, rollout, route_agent
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
    _add_offline(commands)
    _add_plan(commands)
    _add_status(commands)
    rollout.register(commands)
    _add_judge(commands)
    autoscale.register(commands)
    route_agent.register(commands)
    metrics_server.register(commands)
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


def _add_plan(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("plan", help="say what fits on which device, and why")
    subject = command.add_mutually_exclusive_group(required=True)
    subject.add_argument(
        "files", nargs="*", default=[], metavar="FILE", help="manifest, or - for stdin"
    )
    subject.add_argument("--config", metavar="FILE", help="plan a model's config.json instead")
    subject.add_argument("--model", metavar="ID", help="plan a model of the catalog instead")
    device = command.add_mutually_exclusive_group()
    device.add_argument(
        "--gpu", type=plan.device_name, metavar="NAME", help="what if: on this device (A10G)"
    )
    device.add_argument("--gpus", action="store_true", help="compare all known devices")
    command.add_argument("--tensor", type=int, metavar="N", help="what if: so many tensor ranks")
    command.add_argument("--max-model-len", type=int, metavar="N", help="what if: so many tokens")
    command.add_argument("--explain", action="store_true", help="draw the memory, give reasons")
    command.add_argument("-o", "--output", choices=("text", "json"), default="text")
    command.set_defaults(run=plan.run)


def _add_status(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("status", help="say how a service is, and what to do")
    command.add_argument("name", nargs="?", help="LLMService; all of the namespace when left out")
    command.add_argument("-n", "--namespace", help="default: the context's, as kubectl")
    command.add_argument("-w", "--watch", action="store_true", help="until it is ready or stalled")
    command.add_argument("-o", "--output", choices=("text", "json"), default="text")
    command.add_argument("--kubeconfig", help="default: as kubectl finds it")
    command.add_argument("--context", help="context of the kubeconfig")
    command.set_defaults(run=_run_status)


def _add_judge(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("judge", help="try guardrails on recorded traffic")
    replay = command.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "replay", help="judge a trace as a rollout would judge its canary"
    )
    columns = ",".join(judge.COLUMNS)
    replay.add_argument("trace", metavar="TRACE", help=f"CSV with {columns}; - for stdin")
    replay.add_argument(
        "--guardrails", required=True, metavar="FILE", help="a guardrails list, or an LLMService"
    )
    replay.add_argument(
        "--window", type=judge.positive_seconds, default=30.0, metavar="SECONDS", help="per look"
    )
    replay.add_argument(
        "--bake", type=judge.seconds, default=0.0, metavar="SECONDS", help="promote no earlier"
    )
    replay.add_argument("--buckets", choices=("fine", "vllm"), default="fine", help=judge.BUCKETS)
    replay.add_argument("--all", action="store_true", help="a line per window, not only the last")
    replay.add_argument("-o", "--output", choices=("text", "json"), default="text")
    replay.set_defaults(run=judge.replay)


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
