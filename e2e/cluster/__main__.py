"""`python3 -m e2e.cluster COMMAND`: the cluster by hand. Needs only Python, and mostly root."""

import argparse
import signal
import sys

from . import buildah, docker, images, prerequisites, toolchain
from .control_plane import ControlPlane
from .gpus import fake_gpus
from .imported import forget_images
from .local import LocalCluster
from .progress import ClusterError, say
from .provider import choose


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m e2e.cluster", description=__doc__)
    parser.add_argument(
        "--name", default="llmservice", help="which cluster; several can stand side by side"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text)

    command("prerequisites", "check this machine and install the Debian packages it lacks")
    command("build", "build the cluster's programs; prints their folder")
    command("up", "start the cluster (CLUSTER=local, kind or current), or find it running")
    command("down", "end the cluster; imported images stay in the cache")
    command("purge", "end the cluster, and forget the images that local clusters imported")
    command("status", "say what is running and how to reach it")
    command("kubeconfig", "print the path of the administrator's kubeconfig")
    command("images", "build every image of this repository; prints their tags")
    image = command("image", "build one image; prints its tag")
    image.add_argument("image", choices=[*images.NAMES, "base", "pause"])
    load = command("load", "build one image and put it into the cluster; prints its tag there")
    load.add_argument("image", choices=images.NAMES)
    gpus = command("gpus", "make the local cluster's node claim GPUs")
    gpus.add_argument("count", type=int)
    gpus.add_argument("--product", default="NVIDIA-A10G")
    gpus.add_argument("--memory", type=int, default=23028, help="MiB (default %(default)s)")
    plane = command("control-plane", "run a control plane with faked nodes until interrupted")
    plane.add_argument("--nodes", type=int, default=1)
    plane.add_argument("--gpus", type=int, default=8, help="on each node (default %(default)s)")
    return parser


def _build_image(name: str) -> str:
    match name:
        case "base":
            return buildah.ensure_base().tag
        case "pause":
            return buildah.ensure_pause().tag
    if docker.answers():
        return docker.ensure(images.recipe(name)).tag
    return buildah.ensure(images.recipe(name)).tag


def _control_plane(nodes: int, gpus: int) -> None:
    with ControlPlane(nodes=nodes, gpus=gpus) as cluster:
        say(f"control plane at {cluster.layout.server}; Ctrl-C ends it")
        print(f"export KUBECONFIG={cluster.kubeconfig}", flush=True)
        ends = {signal.SIGINT, signal.SIGTERM}
        # Only now: the daemons would have inherited it.
        signal.pthread_sigmask(signal.SIG_BLOCK, ends)
        signal.sigwait(ends)


def _on_machine(words: argparse.Namespace) -> str | None:
    """Commands that concern this machine; the text to print, or None when it is none of them."""
    match words.command:
        case "prerequisites":
            prerequisites.check_machine()
            prerequisites.check_disk()
            prerequisites.install(prerequisites.NODE_COMMANDS | prerequisites.IMAGE_COMMANDS)
            return "this machine can run the cluster"
        case "build":
            return str(toolchain.binaries())
        case "images":
            return "\n".join(_build_image(name) for name in images.NAMES)
        case "image":
            return _build_image(words.image)
        case "control-plane":
            _control_plane(words.nodes, words.gpus)
            return ""
    return None


def _on_cluster(words: argparse.Namespace) -> str:
    """Commands that concern one cluster; the text to print."""
    cluster = choose(words.name)
    match words.command:
        case "up":
            cluster.up()
            return cluster.status()
        case "down":
            cluster.down()
        case "purge":
            cluster.down()
            forget_images()
        case "status":
            return cluster.status()
        case "kubeconfig":
            return str(cluster.kubeconfig())
        case "load":
            return cluster.load(words.image)
        case "gpus":
            local = LocalCluster(words.name)
            fake_gpus(local.api(), local.name, words.count, words.product, words.memory)
    return ""


def main() -> int:
    """Run one command; 1 and a sentence on standard error when something stands in the way."""
    words = _parser().parse_args()
    try:
        answer = _on_machine(words)
        if answer is None:
            answer = _on_cluster(words)
    except ClusterError as error:
        say(str(error))
        return 1
    if answer:
        print(answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
