"""Devices whose facts are known: ``data/gpus.toml``, one row with a source per product."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

_GIB = 1 << 30
_DECORATION = re.compile(r"^(nvidia|amd|instinct|tesla|geforce)-|-sxm\d?(?=-|$)|-shared$")
"""Vendors, sockets, and what GPU feature discovery appends to a time-sliced product."""
_CAPACITY = re.compile(r"-\d+gb$")


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator, as an engine sees it."""

    name: str
    memory: int
    """Bytes in all, as torch reports them: what ``--gpu-memory-utilization`` is a share of."""
    compute_capability: tuple[int, int] | None = None
    fp8: bool = False
    """Has matrix units for fp8."""
    unified: bool = False
    """Its memory is the host's too, so what is free depends on everything else that runs."""

    @property
    def is_slice(self) -> bool:
        """A MIG slice: two of them cannot talk to each other."""
        return "-mig-" in self.name.lower()


def find_device(product: str) -> Device | None:
    """The device of a ``nvidia.com/gpu.product`` label, or of a name as people write it, or None.

    ``NVIDIA-A10G-SHARED``, ``a10g``, ``Tesla T4``, ``H100 SXM 80GB`` and ``4090`` are found.
    """
    exact = product.strip().lower().replace(" ", "-")
    plain = exact
    while (shorter := _DECORATION.sub("", plain)) != plain:
        plain = shorter
    short = _CAPACITY.sub("", plain)
    names = (exact, plain, short, f"rtx-{short}")
    return next((device for name in names if (device := _by_name().get(name))), None)


@cache
def known_devices() -> tuple[Device, ...]:
    """Every row of the table, in its order."""
    return tuple(map(_device, _rows()))


def _device(row: Mapping[str, Any]) -> Device:
    major, _, minor = str(row.get("compute_capability", "")).partition(".")
    capability = (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None
    return Device(
        name=row["name"],
        memory=int(row["memory_gib"] * _GIB),
        compute_capability=capability,
        fp8=row.get("fp8", False),
        unified=row.get("unified", False),
    )


@cache
def _rows() -> tuple[Mapping[str, Any], ...]:
    text = files("llmservice").joinpath("data", "gpus.toml").read_text(encoding="utf-8")
    return tuple(tomllib.loads(text)["gpu"])


@cache
def _by_name() -> Mapping[str, Device]:
    return {
        name.lower(): _device(row) for row in _rows() for name in (row["name"], *row["products"])
    }
