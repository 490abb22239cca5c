"""What follows training: passes over the training data that add to the last checkpoint.

    python -m experiments.stage --workdir runs/sngp
    python -m experiments.stage --start runs/mlp --workdir runs/laplace \\
        --config.head.name=laplace.Laplace --config.stages='[{"name": "laplace"}]'

The first runs the `stages` of a run's config, as training does at its end, and leaves the result in
`WORKDIR/stages`. The second makes a new run from the parameters of another, whose config it takes
with the given changes.
"""

import contextlib
import logging
import pathlib
import shutil
import time
from collections.abc import Iterator
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from experiments import evaluate
from experiments.data.description import write_description
from experiments.data.loader import Prefetch, depth, prefetch
from experiments.data.order import rows
from experiments.data.source import Source
from experiments.experiment import config as config_lib
from experiments.experiment.build import Experiment, setup
from experiments.experiment.readers import patches_of
from experiments.runtime import execution, processes, writers
from experiments.runtime.checkpoint import Checkpoints, DamagedCheckpointError, of_training, verify
from experiments.runtime.progress import Finished, Progress, setup_logging
from experiments.runtime.termination import Interrupted, Stop, graceful_termination
from experiments.runtime.workdir import locked, open_workdir, read_config
from uncertainty.build import ConfigError
from uncertainty.types import Batch, Collections, Stage, State

logger = logging.getLogger(__name__)

FOLDER = "stages"  # of a workdir, with checkpoints of its own


def run(experiment: Experiment, workdir: str | pathlib.Path) -> None:
    """Runs the stages of an experiment on its newest checkpoint, unless that is done.

    Raises:
      ConfigError: there is no checkpoint.
      BlockingIOError: a training holds the workdir.
      Interrupted: SIGTERM or SIGINT came; a stage that trains saves first, a pass begins again.
    """
    if experiment.stages:
        with locked(workdir), graceful_termination() as stop:
            _run(experiment, pathlib.Path(workdir), stop)


def _run(experiment: Experiment, workdir: pathlib.Path, stop: Stop) -> None:
    config = experiment.config
    trained = Checkpoints(workdir, read_only=True, config=of_training(config))
    step = trained.latest_step()
    results = Checkpoints(workdir / FOLDER, keep=1, config=config)
    if step is not None and step == results.latest_step():
        try:
            return verify(results.directory / str(step), config)
        except DamagedCheckpointError as error:
            logger.warning("%s; its stages run again", error)
            shutil.rmtree(results.directory / str(step))
    restored = trained.restore(experiment.shapes)
    if restored is None:
        raise ConfigError(f"workdir: {workdir} has no checkpoint for its stages to start from")
    state, step = restored
    half = workdir / FOLDER / "half"  # checkpoints within a stage that trains
    with contextlib.closing(results):
        start = step
        for i, (name, stage) in enumerate(experiment.stages):
            began = time.monotonic()
            folder = half / f"{step}-{i}-{name}"
            state = run_stage(experiment, stage, state, name, start, folder, stop)
            start += stage.steps
            logger.info("stage %s: %.1f s", name, time.monotonic() - began)
        results.save(step, state)
    if jax.process_index() == 0:
        shutil.rmtree(half, ignore_errors=True)


def run_stage(
    experiment: Experiment,
    stage: Stage,
    state: State,
    name: str,
    start: int,
    half: pathlib.Path,
    stop: Stop,
) -> State:
    """The state after a stage.

    Args:
      experiment: of the run.
      stage, name: what is to be run.
      state: before it.
      start: steps of training that came before, for the order of the examples.
      half: where a stage that trains saves its checkpoints, and resumes from.
      stop: whether it was told to.

    Raises:
      Interrupted: it was.
      FloatingPointError: with `on_fault='stop'`, a step of a stage that trains was not finite.
    """
    mesh = experiment.mesh
    # Whatever shape the examples have, `begin` and `finish` see one for each device.
    x = experiment.example(mesh.shape["data"])
    begin, update, finish = (execution.on_mesh(fn, mesh, particles=stage.separable)
                             for fn in (stage.begin, stage.update, stage.finish))  # fmt: skip
    state = jax.jit(begin)(state, x)
    done = 0
    checkpoints = Checkpoints(half, keep=1, config=experiment.config) if stage.steps else None
    if checkpoints:
        state, done = checkpoints.restore(state) or (state, 0)
    total, stream = examples(experiment, stage, start, done)
    # The state is donated to the next step, so whether a step is done is asked of another array.
    step = jax.jit(lambda *given: (new := update(*given), new.step + 0), donate_argnums=0)
    finished = Finished(done)
    alone, every = jax.process_count() == 1, experiment.config["logging"]["every"]
    with (
        contextlib.closing(checkpoints) if checkpoints else contextlib.nullcontext(),
        Progress(
            total, name, finished=finished, start=done, show=jax.process_index() == 0
        ) as progress,
        stream as ahead,
    ):
        for i in range(done + 1, total + 1):
            state, token = step(state, next(ahead)[1])
            finished.add(i, token)
            progress.update(i)
            meeting = alone or i % every == 0 or i == total
            told = processes.any_signal(stop) if meeting else None
            due = i % experiment.config["checkpoint"]["every"] == 0 or i == total or told
            if checkpoints and due:
                check_faults(state, experiment.config["on_fault"], i)
                if i < total:
                    checkpoints.save(i, state)
            if told:
                kept = "saved" if checkpoints and i < total else "this stage is to be run again"
                raise Interrupted(f"stopped by {told} at step {i} of {total} of {name}; {kept}",
                                  told)  # fmt: skip
        jax.block_until_ready(state)
    return jax.jit(finish)(state, x)


def check_faults(state: State, policy: str, step: int) -> None:
    """Looks at the steps of a stage that were not finite, and so did not happen.

    Raises:
      FloatingPointError: there are some and the policy is to stop, or there are no others.
    """
    faults = np.asarray(execution.host(state.opt_state["faults"]))
    if not faults.any():
        return
    particle = int(faults.argmax())
    message = f"particle {particle}: {faults[particle]} of {step} steps were not finite"
    if policy == "stop" or (faults >= step).all():
        raise FloatingPointError(f"{message}; lower the learning rate of the stage")
    logger.warning("%s and did not happen", message)


def examples(experiment: Experiment, stage: Stage, start: int, done: int) -> tuple[int, Prefetch]:
    """How many batches a stage sees, and those after the first `done`."""
    config = experiment.config
    if not stage.steps:
        source = experiment.source if stage.data == "train" else experiment.validation
        size = config["evaluation"]["batch_size"]
        made = parts(source, experiment.mesh, size)
        return -(-len(source) // size), prefetch(made, lambda batch: batch)
    ahead = depth(experiment.source, config["batch_size"])
    made = experiment.batches(start + done)
    return stage.steps, prefetch(made, execution.put_batch(experiment.mesh), ahead)


def parts(source: Source, mesh: Mesh, size: int) -> Iterator[tuple[int, Batch]]:
    """(i, batch) over all examples once, on the mesh, without augmentation.

    The last batch is what remains; every process holds all of it, as it need not divide.
    """
    share = rows(size, jax.process_index(), jax.process_count())
    put = execution.put_batch(mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())
    whole = len(source) // size
    for i in range(whole):
        yield i, put(source.gather(np.arange(i * size + share.start, i * size + share.stop)))
    if len(source) > whole * size:
        rest = dict(source.gather(np.arange(whole * size, len(source))))
        yield whole, execution.place(rest, dict.fromkeys(rest, everywhere))


def begin_from(start: str | pathlib.Path, workdir: str | pathlib.Path, changes: dict) -> Experiment:
    """A new run in `workdir` with the parameters of the run in `start` and a changed config.

    Collections that both have (batch statistics, say) and samples come from `start` too.

    Raises:
      ConfigError: the parameters of the two differ in path or shape, or `workdir` has others;
        hyper-parameters or samples are not those of `start`.
    """
    config = ConfigDict(read_config(start), type_safe=False)
    config_lib.apply(config, changes)
    old = evaluate.open_run(start)
    new = setup(config)
    trained = Checkpoints(start, read_only=True, config=of_training(old.config))
    restored = trained.restore(old.shapes)
    if restored is None:
        raise ConfigError(f"start: {start} has no checkpoint")
    trained, step = restored
    state = new.init()
    here, there = (_shapes(s.params) for s in (state, trained))
    different = sorted(k for k in here | there if here.get(k) != there.get(k))
    if different:
        lines = [f"  {k}: {there.get(k)} -> {here.get(k)}" for k in different[:10]]
        raise ConfigError(f"start: parameters of {start} that the new config has otherwise:\n"
                          + "\n".join(lines))  # fmt: skip
    grids = [patches_of(e.config, e.source.shape) for e in (old, new)]
    if grids[0] != grids[1]:  # as many patches, on other sides
        raise ConfigError("start: position embeddings of {} x {} patches, of which the new config "
                          "has {} x {}".format(*grids[0][1:], *grids[1][1:]))  # fmt: skip
    hyper = [None if s.hyper is None else sorted(s.hyper) for s in (state, trained)]
    if hyper[0] != hyper[1]:
        raise ConfigError(f"start: {start} has the hyper-parameters {hyper[1]}, the new config "
                          f"{hyper[0]}; they belong to its particles")  # fmt: skip
    samples = [None if s.samples is None else s.samples.taken.shape for s in (state, trained)]
    if samples[0] != samples[1]:
        mine, theirs = (0 if shape is None else shape[1] for shape in samples)
        raise ConfigError(f"inference.collect: {start} has {theirs} samples of each particle, "
                          f"the new config {mine}; they belong to its particles")  # fmt: skip

    def both(mine: Collections, theirs: Collections) -> Collections:
        mine, theirs = (flax.traverse_util.flatten_dict(c) for c in (mine, theirs))
        kept = {k: theirs[k] for k in mine if k in theirs and theirs[k].shape == mine[k].shape}
        return flax.traverse_util.unflatten_dict({**mine, **kept})

    state = state.replace(
        step=trained.step,
        params=trained.params,
        hyper=trained.hyper,
        collections=both(state.collections, trained.collections),
    )
    if state.slow is not None:
        state = new.inference.restart(state)
    if trained.samples is not None:
        S = samples[0][1]
        new_ones = jax.tree.map(lambda a: jnp.stack([a] * S, axis=1), state.collections)
        collections = both(new_ones, trained.samples.collections)
        state = state.replace(samples=trained.samples.replace(collections=collections))
    workdir = open_workdir(workdir, new.config, ignore=config_lib.MAY_CHANGE)
    saved = Checkpoints(workdir, config=of_training(new.config), execution=execution.rounding(new))
    with locked(workdir), contextlib.closing(saved) as checkpoints:
        former = checkpoints.restore(new.shapes)
        if former is None:
            checkpoints.save(step, state)
        elif not _same(former[0].params, state.params):
            raise ConfigError(f"workdir: {workdir} has other parameters than {start}; take another")
        if jax.process_index() == 0:
            write_description(workdir, new.source)
            if (pathlib.Path(start) / writers.METRICS).is_file():
                shutil.copy(pathlib.Path(start) / writers.METRICS, workdir / writers.METRICS)
    return new


def _same(a: Any, b: Any) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in execution.host(list(pairs)))


def _shapes(params: Any) -> dict[str, tuple]:
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    return {path: tuple(leaf.shape) for path, leaf in flat.items()}


def main(argv: list[str]) -> None:
    changes = config_lib.assignments(argv[1:], "--config.")
    setup_logging()
    if START.value:
        experiment = begin_from(START.value, WORKDIR.value, changes)
    elif changes:
        raise ConfigError(f"--config.{next(iter(changes))}: only a new run, with --start, may have "
                          "another config")  # fmt: skip
    else:
        experiment = evaluate.open_run(WORKDIR.value, examples=True)
    if not experiment.stages:
        raise ConfigError("config.stages: empty; such as [{'name': 'laplace'}]")
    run(experiment, WORKDIR.value)
    print(f"next: python -m experiments.evaluate --workdir {WORKDIR.value}")


if __name__ == "__main__":
    WORKDIR = flags.DEFINE_string("workdir", None, "The run's directory.")
    START = flags.DEFINE_string("start", None, "A run to take the parameters of, for a new one.")
    flags.mark_flags_as_required(["workdir"])
    config_lib.run(main)
