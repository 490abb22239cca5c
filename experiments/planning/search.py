"""Meshes and executors to try for a slice, and the best of those that fit."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.planning import estimates
from experiments.planning.child import CONFIG as REFUSED
from experiments.planning.slices import Topology

FSDP = ((".*", "data"),)


class Candidate(NamedTuple):
    """Fields of a config, by dotted names."""

    fields: Mapping[str, Any]

    @property
    def label(self) -> str:
        """The mesh, executor and what else differs, in one line."""
        mesh = self.fields["mesh"]
        parts = [" x ".join(f"{axis} {size}" for axis, size in mesh.items() if size > 1) or "one"]
        if "inference.executor" in self.fields:
            parts.append(self.fields["inference.executor"])
        if self.fields.get("sharding") == FSDP:
            parts.append("parameters over data")
        if self.fields.get("inference.accumulate", 1) > 1:
            parts.append(f"accumulate {self.fields['inference.accumulate']}")
        return ", ".join(parts)


def candidates(config: Mapping[str, Any], topology: Topology) -> list[Candidate]:
    """What can be tried, the plainest first: those that keep most devices for the batch.

    Meshes are the products of data, particle (a divisor of P), expert (of the number of experts, if
    there are any) and model (only if a rule of the config names it). Each is tried with parameters
    sharded over data too, if the config has no rules; with `scan` where a chip has several
    particles; and, last, with the batch in parts.
    """
    size, P = topology.size, config["inference"]["size"]
    experts = _experts(config)
    model = any("model" in _axes(rule) for rule in config["sharding"])
    found: list[tuple[tuple, Candidate]] = []
    for particle in _divisors(math.gcd(size, P)):
        for expert in _divisors(math.gcd(size // particle, experts)):
            for along in _divisors(size // particle // expert) if model else [1]:
                data = size // particle // expert // along
                if config["batch_size"] % (data * expert):
                    continue
                mesh = dict(data=data, particle=particle, expert=expert, model=along)
                for fields, cost in _variants(config, data * expert, data, P // particle):
                    order = (cost, expert * along, particle)
                    found.append((order, Candidate({"mesh": mesh, **fields})))
    return [candidate for _, candidate in sorted(found, key=lambda each: each[0])]


def _variants(
    config: Mapping[str, Any], sharing: int, data: int, here: int
) -> Iterator[tuple[dict[str, Any], int]]:
    """(fields, how far from the plain program) of one mesh."""
    executors: list[dict[str, Any]] = [{}]
    if here > 1:
        executors = [{"inference.executor": name} for name in ("vmap", "scan")]
    shardings: list[dict[str, Any]] = [{}]
    if data > 1 and not config["sharding"]:
        shardings.append({"sharding": FSDP})
    each = config["batch_size"] // sharing
    parts = [k for k in (1, 2, 4, 8, 16) if each % k == 0]
    for i, executor in enumerate(executors):
        for j, sharding in enumerate(shardings):
            for k, accumulate in enumerate(parts):
                fields = {**executor, **sharding}
                if accumulate > 1:
                    fields["inference.accumulate"] = accumulate
                yield fields, i + j + 3 * k


def _experts(config: Mapping[str, Any]) -> int:
    """E; 1 without experts."""
    spec = config["backbone"].get("experts") or {}
    return spec.get("num_experts", 1) if isinstance(spec, Mapping) else 1


def _axes(rule: Any) -> Sequence[str]:
    axes = rule[1]
    return (axes,) if isinstance(axes, str) else tuple(axis for axis in axes if axis)


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


class Tried(NamedTuple):
    candidate: Candidate
    result: Mapping[str, Any]


def search(
    found: Sequence[Candidate],
    compile_: Callable[[Candidate], Mapping[str, Any]],
    topology: Topology,
    limit: int,
) -> Iterator[Tried]:
    """Compiles up to `limit` candidates, in turn; whole levels of parts of a batch are left out
    once something with fewer parts fits. What the config refuses is not compiled, and free."""
    enough = math.inf
    for candidate in found:
        parts = candidate.fields.get("inference.accumulate", 1)
        if parts > enough or limit == 0:
            continue
        result = compile_(candidate)
        limit -= result.get("failed") != REFUSED
        if estimates.fits(result, topology) or (
            topology.chip is None and estimates.compiles(result)
        ):
            enough = min(enough, parts)
        yield Tried(candidate, result)


def best(tried: Sequence[Tried], topology: Topology) -> Tried | None:
    """The one that fits with the least roofline time, then the least memory; None if none fits.

    Of CPU devices, which have no peaks, the one with the least memory.
    """

    def order(each: Tried) -> tuple[float, float]:
        bound = estimates.roofline(each.result, topology)
        return (bound.seconds if bound else 0.0, each.result["memory"]["peak"])

    fitting = [each for each in tried if estimates.compiles(each.result)
               and estimates.fits(each.result, topology) is not False]  # fmt: skip
    return min(fitting, key=order, default=None)


def advice(
    tried: Sequence[Tried], config: Mapping[str, Any], topology: Topology
) -> tuple[Tried | None, list[str]]:
    """The one that needs the least of those that do not fit, and what to change in it."""
    full = [each for each in tried if estimates.fits(each.result, topology) is False]
    if not full:
        return None, []
    closest = min(full, key=lambda each: estimates.needed(each.result) or math.inf)
    changes = changed(config, closest.candidate)
    return closest, estimates.advice(closest.result, changes, topology)


def changed(config: Mapping[str, Any], candidate: Candidate) -> dict[str, Any]:
    """A config with the candidate's fields."""
    result = dict(config)
    for name, value in candidate.fields.items():
        section, _, field = name.partition(".")
        result[section] = {**result[section], field: value} if field else value
    return result
