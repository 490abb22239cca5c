"""The programs of an experiment, compiled from shapes, and what the compiler says of them."""

import gzip
import math
import pathlib
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from experiments import stage as stage_lib
from experiments.data.examples import batch_shapes
from experiments.experiment.build import Experiment
from experiments.planning import collectives, operations, traffic
from experiments.prediction.trained import Trained
from experiments.runtime import execution, project
from uncertainty.build import ConfigError
from uncertainty.model import count_parameters
from uncertainty.types import State

TRAIN, PREDICT = "train", "predict"
SHAPES = "shapes"  # of the training step, which is traced and not compiled
MEMORY, COMPILER = "memory", "compiler"  # why there is no program


class Program(NamedTuple):
    """A traced program."""

    traced: jax.stages.Traced
    state: State  # its shapes
    batch: Any  # likewise
    examples: int  # of a batch
    calls: int = 1  # for a step: P with the executor 'loop'
    carry: Any = None  # of a stage


def names(experiment: Experiment) -> list[str]:
    """The names of all programs of an experiment; 'stage 0 laplace' also has `finish`."""
    stages = [f"stage {i} {name}" for i, (name, _) in enumerate(experiment.stages)]
    return [TRAIN, PREDICT, *stages, *(f"{name} finish" for name in stages)]


def program(experiment: Experiment, name: str) -> Program:
    """The program of a name, traced.

    Raises:
      ConfigError: there is none of this name.
    """
    config = experiment.config
    if name == TRAIN:
        P = experiment.shapes.key.shape[0]
        batch = execution.put_shapes(
            experiment.data.shapes(P), experiment.mesh, experiment.data.own_examples
        )
        traced = experiment.update.trace(experiment.shapes, batch)
        loop = not isinstance(experiment.update, jax.stages.Wrapped)
        calls = P if loop else 1
        return Program(traced, experiment.shapes, batch, config["batch_size"], calls)
    if name == PREDICT:
        trained = Trained(experiment, experiment.final_shapes)
        size = execution.padded(trained.batch_size, experiment.mesh)
        batch = {"x": batch_shapes(experiment.source, size)["x"]}
        batch = execution.put_shapes(batch, experiment.mesh)
        return Program(trained.trace(), trained.state, batch, trained.batch_size)
    known = names(experiment)
    if name not in known:
        raise ConfigError(f"program: {name!r}; one of {', '.join(map(repr, known))}")
    return _of_stage(experiment, int(name.split()[1]), name.endswith(" finish"))


def _of_stage(experiment: Experiment, index: int, finish: bool) -> Program:
    """A program of a stage, with the shardings that the programs before it give."""
    config, mesh = experiment.config, experiment.mesh
    x = jax.ShapeDtypeStruct((mesh.shape["data"], *experiment.source.shape), np.float32)
    state = experiment.shapes.replace(opt_state=())
    for i, (_, stage) in enumerate(experiment.stages[: index + 1]):
        begin, end = stage_lib.ends(experiment, stage)
        begun = compile_for(mesh, begin.trace(state, x))
        carry = with_shardings(mesh, jax.eval_shape(begin, state, x), begun.output_shardings)
        if i < index:
            ended = compile_for(mesh, end.trace((state, carry), x))
            shapes = jax.eval_shape(end, (state, carry), x)
            state = with_shardings(mesh, shapes, ended.output_shardings)
    if finish:
        return Program(
            end.trace((state, carry), x), state, x, len(x.shape) and x.shape[0], 1, carry
        )
    update = stage_lib.jitted(experiment, stage)
    if stage.steps:
        batch = experiment.data.shapes(state.key.shape[0])
        batch = execution.put_shapes(batch, mesh, experiment.data.own_examples)
        traced = update.trace((state, carry), batch)
        return Program(traced, state, batch, config["batch_size"], 1, carry)
    source = experiment.source if stage.data == "train" else experiment.validation
    size = min(config["evaluation"]["batch_size"], len(source))
    batch = batch_shapes(source, execution.padded(size, mesh))
    batch = execution.put_shapes(batch, mesh)
    return Program(update.trace((state, carry), batch, size), state, batch, size, 1, carry)


def with_shardings(mesh: jax.sharding.Mesh, shapes: Any, shardings: Any) -> Any:
    """Shapes with these shardings; what depends on no array of the mesh is replicated over it."""
    replicated = NamedSharding(mesh, PartitionSpec())
    devices = set(mesh.devices.flat)

    def place(a: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        sharding = sharding if sharding.device_set == devices else replicated
        return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)

    return jax.tree.map(place, shapes, shardings)


def compile_for(mesh: jax.sharding.Mesh, traced: jax.stages.Traced) -> jax.stages.Compiled:
    """A traced program, compiled for the mesh's platform."""
    platform = mesh.devices.flat[0].platform
    return traced.lower(lowering_platforms=(platform,)).compile()


def bytes_of(tree: Any) -> int:
    """Bytes on a device of arrays given by their shapes and shardings, without the padding of
    their layout."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        sharding = getattr(leaf, "sharding", None)
        shape = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
        itemsize = 8 if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else (
            leaf.dtype.itemsize
        )  # fmt: skip
        total += math.prod(shape) * itemsize
    return total


def report(experiment: Experiment, name: str, text: pathlib.Path | None = None) -> dict[str, Any]:
    """Compiles a program, and says what it takes on each device; SHAPES is traced alone.

    Args:
      experiment: built for the devices.
      name: of the program.
      text: where its optimised HLO is written, compressed.
    """
    began = time.monotonic()
    made = program(experiment, TRAIN if name == SHAPES else name)
    traced = time.monotonic()
    found = operations.of_traced(made.traced)
    shared = dict(
        examples=made.examples,
        calls=made.calls,
        parameters=count_parameters(made.state),
        particles=made.state.key.shape[0],
        flops=made.calls * found.flops,
        unknown_loops=found.unknown_loops,
    )
    if name == SHAPES:
        return shared | dict(memory=kinds_of(made, name), **of_hosts(experiment))
    try:
        compiled = compile_for(experiment.mesh, made.traced)
    except Exception as error:  # of the compiler, whose types differ between versions
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        full = "RESOURCE_EXHAUSTED" in reason
        reason = reason.replace(f"{project.ROOT}/", "")[:2000]
        reported = dict(failed=MEMORY if full else COMPILER, reason=reason)
        return shared | reported | dict(memory=kinds_of(made, name))
    seconds = dict(trace=traced - began, compile=time.monotonic() - traced)
    hlo = compiled.as_text()
    if text is not None:
        text.write_bytes(gzip.compress(hlo.encode(), mtime=0))
    mesh = dict(experiment.mesh.shape)
    costs = compiled.cost_analysis() or {}
    loops = [loop.rounds for loop in collectives.loops(hlo)]
    main, chip = traffic.traffic(hlo)
    return shared | dict(
        seconds=seconds,
        compiler=dict(
            flops=costs.get("flops"),
            bytes=costs.get("bytes accessed"),
            seconds=costs.get("optimal_seconds"),
        ),
        memory=memory(compiled, made, name),
        collectives=collectives.summary(collectives.collectives(hlo, mesh)),
        traffic=dict(main=main, chip=chip),
        loops=loops,
        program_bytes=len(hlo),
    )


def of_hosts(experiment: Experiment) -> dict[str, int]:
    """`hosts`, `shares` of a batch that they read, and `state`, the bytes of a checkpoint."""
    shares = execution.shares(experiment.mesh)
    state = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), experiment.shapes)
    return dict(hosts=len(shares), shares=shares[0][1], state=bytes_of(state))


def kinds_of(made: Program, name: str) -> dict[str, int]:
    """Bytes of a program's arguments on a device, by kind: `parameters`, `optimiser`, `batch`, and
    `other` (collections, samples, keys, slow copies, a stage's carry)."""
    state = made.state
    return dict(
        parameters=bytes_of(state.params),
        optimiser=0 if name == PREDICT else bytes_of(state.opt_state),
        other=bytes_of((state.collections, state.samples, state.hyper, state.slow, state.key))
        + bytes_of(made.carry),
        batch=bytes_of(made.batch),
    )


def memory(compiled: jax.stages.Compiled, made: Program, name: str) -> dict[str, int]:
    """Bytes on a device, by kind.

    Arguments are `kinds_of`, and `padding`, which their layout adds. `outputs` are results that do
    not take the place of an argument. A prediction does not read all of a state; a program that is
    called for each particle has the states of the others beside its arguments.
    """
    found = compiled.memory_analysis()
    arguments, kinds = found.argument_size_in_bytes, kinds_of(made, name)
    state = sum(size for kind, size in kinds.items() if kind != "batch")
    arguments += state * (made.calls - 1) // made.calls
    kinds["padding"] = max(arguments - sum(kinds.values()), 0)
    kinds["temporaries"] = found.temp_size_in_bytes
    kinds["outputs"] = max(found.output_size_in_bytes - found.alias_size_in_bytes, 0)
    kinds["code"] = found.generated_code_size_in_bytes
    own = ("temporaries", "outputs", "code")
    return dict(kinds, arguments=arguments, peak=arguments + sum(kinds[kind] for kind in own))


def described(experiment: Experiment) -> Mapping[str, Any]:
    """What all programs of an experiment share."""
    return dict(mesh=dict(experiment.mesh.shape), programs=names(experiment))
