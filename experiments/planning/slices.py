"""Devices that need not be here: TPU slices, and virtual CPU devices.

A topology is `GENERATION:SHAPE` in chips, such as v5e:4x4 or v5p:2x2x4, or `cpu:N`.
"""

import importlib.util
import math
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from uncertainty.build import ConfigError, nearest

GIB = 2**30


class Chip(NamedTuple):
    """The published figures of a chip."""

    name: str
    hbm: float  # bytes
    flops: float  # bfloat16 products and sums per second, in the matrix units
    bandwidth: float  # bytes of HBM per second
    links: float  # bytes per second that a chip sends to its neighbours over all its links together
    axes: int  # of the torus
    source: str
    options: Mapping[str, Any] = {}  # of `get_topology_desc`


# A float32 product takes one pass in bfloat16 by JAX's default precision, and six at the highest.
# `links` is half of the bidirectional bandwidth.
CHIPS = {
    "v4": Chip(
        "TPU v4", 32 * GIB, 275e12, 1_228e9, 300e9, 3, "https://cloud.google.com/tpu/docs/v4",
        {"chip_config_name": "megacore"},  # both cores of a chip as one device, as on Cloud TPU
    ),
    "v5e": Chip("TPU v5e", 16 * GIB, 197e12, 819e9, 200e9, 2,
                "https://cloud.google.com/tpu/docs/v5e"),
    "v5p": Chip("TPU v5p", 95 * GIB, 459e12, 2_765e9, 600e9, 3,
                "https://cloud.google.com/tpu/docs/v5p"),
    "v6e": Chip("TPU v6e", 32 * GIB, 918e12, 1_640e9, 400e9, 2,
                "https://cloud.google.com/tpu/docs/v6e"),
}  # fmt: skip
INSTALL = "pip install '.[tpu]' (any machine with Linux can compile for a TPU)"


class Topology(NamedTuple):
    """A parsed name of a topology."""

    name: str
    platform: str  # 'tpu' or 'cpu'
    size: int  # chips or devices
    chip: Chip | None  # None for CPU, which has no published peaks


def parse(name: str, installed: bool = True) -> Topology:
    """The topology of a name; nothing is loaded.

    Args:
      name: such as v5e:4x4.
      installed: whether its compiler has to be there.

    Raises:
      ConfigError: an unknown generation or shape, or libtpu is missing.
    """
    generation, _, shape = name.partition(":")
    valid = "v5e:4x4, v6e:2x4, v5p:2x2x2, v4:2x2x4 or cpu:8, for example"
    if generation == "cpu":
        if not re.fullmatch(r"[1-9]\d{0,3}", shape):
            raise ConfigError(f"topology: {name!r}; a number of CPU devices is needed, as in cpu:8")
        return Topology(name, "cpu", int(shape), None)
    if generation not in CHIPS:
        near = nearest(generation, [*CHIPS, "cpu"])
        raise ConfigError(f"topology: {name!r}: no chip {generation!r}; {near}; {valid}")
    chip = CHIPS[generation]
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
        raise ConfigError(f"topology: {name!r}: {shape!r} is no shape in chips; {valid}")
    sides = [int(side) for side in shape.split("x")]
    if len(sides) != chip.axes:
        raise ConfigError(
            f"topology: {name!r}: slices of {chip.name} have {chip.axes} sides, not {len(sides)}"
        )
    if sides[0] % 2 or sides[1] % 2:
        raise ConfigError(
            f"topology: {name!r}: a host of {chip.name} has 2 x 2 chips, so the first two sides "
            f"are even; the smallest is {generation}:{'x'.join(['2', '2', '1'][: chip.axes])}"
        )
    if installed and importlib.util.find_spec("libtpu") is None:
        raise ConfigError(f"topology: {name!r} needs the TPU compiler, libtpu: {INSTALL}")
    return Topology(name, "tpu", math.prod(sides), chip)


def environment(topology: Topology) -> dict[str, str]:
    """The environment of a process that compiles for a topology."""
    mine = dict(os.environ, JAX_PLATFORMS="cpu", TF_CPP_MIN_LOG_LEVEL="2")
    if topology.platform == "tpu":
        return mine | {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    flags = re.sub(r"--xla_force_host_platform_device_count=\S+", "", mine.get("XLA_FLAGS", ""))
    flags += f" --xla_force_host_platform_device_count={topology.size}"
    return mine | {"XLA_FLAGS": flags.strip()}


def devices(topology: Topology) -> list[jax.Device]:
    """The devices, in a process with `environment`.

    Raises:
      ConfigError: the compiler knows no such topology.
    """
    if topology.platform == "cpu":
        return jax.devices("cpu")
    from jax.experimental import topologies

    options = dict(topology.chip.options)
    try:
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=topology.name, **options
        )
    except Exception as error:  # of the plugin, whose types differ between versions
        raise ConfigError(f"topology: {topology.name!r}: {error}") from error
    found = list(described.devices)
    if len(found) != topology.size:
        raise ConfigError(
            f"topology: {topology.name!r} has {len(found)} devices for {topology.size} chips; this "
            "version of libtpu counts otherwise"
        )
    return found
