"""GPUs on nodes that have none: the scheduler believes what a node's status says.

Faked nodes are born with them; a real kubelet's node is patched. A pod that asks for more than
there is stays Pending with the scheduler's real message. Nothing here can compute.
"""

from .api import JSON, Api

RESOURCE = "nvidia.com/gpu"
PRODUCT = "NVIDIA-A10G"
MEMORY_MEBIBYTES = 23028
"""What GPU feature discovery reports for an A10G."""


def gpu_capacity(count: int) -> dict[str, str]:
    """The part of a node's capacity that says it has `count` GPUs."""
    return {RESOURCE: str(count)}


def gpu_labels(
    count: int, product: str = PRODUCT, memory_mebibytes: int = MEMORY_MEBIBYTES
) -> dict[str, str]:
    """Node labels as GPU feature discovery sets them; none for a node without GPUs."""
    if not count:
        return {}
    return {
        f"{RESOURCE}.product": product,
        f"{RESOURCE}.memory": str(memory_mebibytes),
        f"{RESOURCE}.count": str(count),
    }


def fake_gpus(
    api: Api,
    node: str,
    count: int,
    product: str = PRODUCT,
    memory_mebibytes: int = MEMORY_MEBIBYTES,
) -> None:
    """Make `node` claim `count` GPUs; none takes them away again."""
    labels: JSON = dict.fromkeys(gpu_labels(1))
    labels.update(gpu_labels(count, product, memory_mebibytes))
    api.merge(f"/api/v1/nodes/{node}", {"metadata": {"labels": labels}})
    room = gpu_capacity(count) if count else {RESOURCE: None}
    status = {"status": {"capacity": room, "allocatable": room}}
    api.merge(f"/api/v1/nodes/{node}/status", status)
