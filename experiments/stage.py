"""Runs the stages after training, such as passes over the training data, on the last checkpoint.

    python -m experiments.stage --workdir runs/sngp
    python -m experiments.stage --start runs/mlp --workdir runs/laplace \\
        --config.head.name=laplace.Laplace --config.stages='[{"name": "laplace"}]'

The first command runs the `stages` of a run's config, as training does at its end, and writes the
result to `WORKDIR/stages`. The second makes a new run from the parameters of another one, with its
config and the given changes.
"""

import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments import evaluate
from experiments.data import assignment
from experiments.data.derived import key_of
from experiments.data.description import check_description, write_description
from experiments.data.loader import Prefetch, prefetch
from experiments.data.order import rows
from experiments.data.source import Source
from experiments.experiment import config as config_lib
from experiments.experiment.build import Experiment, setup
from experiments.runtime import execution, loop, processes, segments, storage, writers
from experiments.runtime.checkpoint import Checkpoints, DamagedCheckpointError, of_training, verify
from experiments.runtime.progress import setup_logging
from experiments.runtime.termination import Stop, graceful_termination
from experiments.runtime.workdir import MAY_CHANGE, locked, opened, read_config
from uncertainty.build import ConfigError
from uncertainty.types import Batch, Metrics, Stage, State

logger = logging.getLogger(__name__)

FOLDER = "stages"  # in a workdir, with its own checkpoints


def run(experiment: Experiment, workdir: str | storage.Path) -> None:
    """Runs the stages of an experiment on its newest checkpoint, unless they are done.

    Raises:
      ConfigError: there is no checkpoint.
      ValueError: the training data are not those that the run was trained on.
      BlockingIOError: a training run has locked the workdir.
      ParticleFault: with `on_fault='stop'`, a step of a stage that trains was not finite.
      Interrupted: SIGTERM or SIGINT came; the stage saves first.
    """
    if experiment.stages:
        workdir = storage.path(workdir)
        with locked(workdir), graceful_termination() as stop:
            _run(experiment, workdir, stop)


def _run(experiment: Experiment, workdir: storage.Path, stop: Stop) -> None:
    config = experiment.config
    trained = Checkpoints(workdir, read_only=True, config=of_training(config))
    step = trained.latest_step()
    results = Checkpoints(workdir / FOLDER, keep=1, config=config)
    if _finished(results, step):
        return
    check_description(workdir, experiment.source, experiment.data.sources)
    # Stages do not need the state of the optimiser.
    restored = trained.restore(experiment.shapes.replace(opt_state=()))
    if restored is None:
        raise ConfigError(f"workdir: {workdir} has no checkpoint for its stages to start from")
    state, step = restored
    if _finished(results, step):  # of the step before a damaged one
        return
    half = workdir / FOLDER / "half"  # checkpoints within a stage
    with contextlib.closing(results):
        before = step
        for i, (name, stage) in enumerate(experiment.stages):
            began = time.monotonic()
            # Steps of a pass are batches of this size, which may differ when the run resumes.
            size = f"-{config['evaluation']['batch_size']}" if stage.passes else ""
            half_i = half / f"{step}-{i}-{name}{size}"
            state = run_stage(experiment, name, stage, state, before, workdir, half_i, stop)
            before += stage.steps
            logger.info("stage %s: %.1f s", name, time.monotonic() - began)
        results.save(step, state)
    if jax.process_index() == 0:
        with contextlib.suppress(OSError):
            storage.remove(half)


def _finished(results: Checkpoints, step: int | None) -> bool:
    """Whether the stages have run on the checkpoint of a step; a damaged result is removed."""
    if step is None or step != results.latest_step():
        return False
    try:
        verify(results.directory / str(step), results.config)
    except DamagedCheckpointError as error:
        logger.warning("%s; its stages run again", error)
        storage.remove(results.directory / str(step))
        return False
    return True


def run_stage(
    experiment: Experiment,
    name: str,
    stage: Stage,
    state: State,
    before: int,
    workdir: storage.Path,
    half: storage.Path,
    stop: Stop,
) -> State:
    """The state after a stage.

    Args:
      experiment: of the run.
      name, stage: to run.
      state: before the stage.
      before: previous steps of training, for the order of the examples and the records.
      workdir: of the records.
      half: the folder of checkpoints within the stage, to resume from.
      stop: whether the process was asked to stop.

    Raises:
      Interrupted: the process was asked to stop.
      ParticleFault: with `on_fault='stop'`, a step of a stage that trains was not finite.
    """
    config, mesh = experiment.config, experiment.mesh
    begin, finish = ends(experiment, stage)
    x = experiment.example(mesh.shape["data"])
    checkpoints = Checkpoints(half, keep=1, config=config, execution=experiment.rounding())
    both, done = resumed(checkpoints, (state, begin(state, x)), name)
    steps, stream = examples(experiment, stage, before, done)
    with (
        contextlib.closing(
            writers.Writer(
                workdir,
                before + done,
                prefix=f"{name}/",
                tensorboard=config["logging"]["tensorboard"],
                wandb=config["logging"].get("wandb", False),
            )
        ) as writer,
        contextlib.closing(checkpoints),
        stream,
    ):
        services = loop.Services(
            stop=stop,
            writer=writer,
            checkpoints=checkpoints,
            faults=loop.Faults(config["on_fault"], done, stage.separable, f" of {name}"),
            own_examples=experiment.data.own_examples,
            log_every=config["logging"]["every"],
            save_every=config["checkpoint"]["every"],
            before=before,
            learning_rate=stage.learning_rate,
            monitor=lambda both: experiment.monitor(both[0]),
        )
        update = compiled(experiment, stage)
        both = loop.run(name, both, update, stream, done, steps, services)
    return finish(both, x)


def resumed(checkpoints: Checkpoints, both: tuple[State, Any], name: str) -> tuple[Any, int]:
    """(State, carry) of the newest checkpoint within a stage and its step, or the initial ones."""
    try:
        restored = checkpoints.restore(both)
    except (ValueError, DamagedCheckpointError) as error:  # for example of another version
        logger.warning("%s\nstage %s starts from its first step", error, name)
        if jax.process_index() == 0:
            with contextlib.suppress(OSError):
                storage.remove(checkpoints.directory)
        processes.barrier()
        return both, 0
    if restored is None:
        return both, 0
    logger.info("stage %s: resuming from step %d", name, restored[1])
    return restored


class Padded(NamedTuple):
    """A batch of `size` examples and padding, so that devices can share it."""

    batch: Batch
    size: int


def compiled(experiment: Experiment, stage: Stage) -> Callable[[Any, Any], tuple[Any, Metrics]]:
    """((State, carry), batch) -> (State, carry), metrics: the update of a stage, donated.

    For a stage that passes over the data it takes Padded.
    """
    program = jitted(experiment, stage)
    return program if stage.steps else lambda both, padded: program(both, *padded)


def ends(experiment: Experiment, stage: Stage) -> tuple[Any, Any]:
    """`begin` and, of ((State, carry), x), `finish`, jitted.

    They get one example for each device of the data axis.
    """
    begin, finish = (
        jax.jit(execution.on_mesh(fn, experiment.mesh, stage.separable))
        for fn in (stage.begin, lambda both, x: stage.finish(*both, x))
    )
    return begin, finish


def jitted(experiment: Experiment, stage: Stage) -> Any:
    """The jitted function of `compiled`; of a stage that passes over the data it takes a batch with
    padding, and the number of examples without."""

    def update(both: tuple[State, Any], batch: Batch) -> tuple[Any, Metrics]:
        state, carry, metrics = stage.update(*both, batch)
        # The state is donated to the next step, so its metrics show whether a step is done.
        return (state, carry), metrics or {"step": state.step + 0}

    own = experiment.data.own_examples and bool(stage.steps)
    update = execution.on_mesh(update, experiment.mesh, stage.separable, own)
    if stage.steps:
        return jax.jit(update, donate_argnums=0)

    def cut(both: tuple[State, Any], batch: Batch, size: int) -> tuple[Any, Metrics]:
        return update(both, {name: a[:size] for name, a in batch.items()})

    return jax.jit(cut, donate_argnums=0, static_argnums=2)


def examples(experiment: Experiment, stage: Stage, before: int, done: int) -> tuple[int, Prefetch]:
    """The number of batches of a stage, and those after the first `done`."""
    config = experiment.config
    if stage.steps:
        ahead = experiment.data.depth(experiment.shapes.key.shape[0])
        return stage.steps, prefetch(experiment.batches(before + done), experiment.put, ahead)
    source = experiment.source if stage.data == "train" else experiment.validation
    size = config["evaluation"]["batch_size"]
    each = -(-len(source) // size)
    order = np.random.default_rng(0).permutation(len(source)) if stage.shuffled else None
    batches = parts(source, experiment.mesh, size, done, order)
    return stage.passes * each, prefetch(batches, lambda b: b)


def parts(
    source: Source, mesh: Mesh, size: int, start: int, order: np.ndarray | None = None
) -> Iterator[tuple[int, Padded]]:
    """(i, batch) of endless passes over all examples from batch `start` on, without augmentation.

    The last batch of a pass may be smaller. `order` has the examples' indices; None for 0, 1, ...
    """
    put, share = execution.put_batch(mesh), execution.share(mesh)
    for i in itertools.count(start):
        first = i % -(-len(source) // size) * size
        stop = min(first + size, len(source))
        mine = rows(execution.padded(stop - first, mesh), **share)
        indices = np.minimum(np.arange(first + mine.start, first + mine.stop), stop - 1)
        indices = indices if order is None else order[indices]
        yield i, Padded(put(source.gather(indices)), stop - first)


def begin_from(start: str | storage.Path, workdir: str | storage.Path, changes: dict) -> Experiment:
    """A new run in `workdir` with the parameters of the run in `start` and a changed config.

    Collections that both have (such as batch statistics) and samples are taken from `start` too.

    Raises:
      ConfigError: the parameters of the two differ in path or shape, `workdir` has other
        parameters, or hyper-parameters or samples differ from those of `start`.
      ValueError: the training data are those of `start` by the config, but have changed since.
    """
    from experiments.experiment.inherit import inherited, same

    start, workdir = storage.path(start), storage.path(workdir)
    config = ConfigDict(read_config(start), type_safe=False)
    config_lib.apply(config, changes)
    old = evaluate.open_run(start)
    new = setup(config)
    checkpoints = Checkpoints(start, read_only=True, config=of_training(old.config))
    restored = checkpoints.restore(old.shapes.replace(opt_state=()))
    if restored is None:
        raise ConfigError(f"start: {start} has no checkpoint")
    trained, step = restored
    before, after = (_data_sets(experiment.config) for experiment in (old, new))
    if before[""] == after[""]:
        sources = {
            name: source
            for name, source in new.data.sources.items()
            if before.get(name) == after.get(name)
        }
        check_description(start, new.source, sources)
    state = inherited(start, old, trained, new)
    saved = dict(config=of_training(new.config), execution=new.rounding())
    with (
        opened(workdir, new.config, ignore=MAY_CHANGE) as workdir,
        contextlib.closing(Checkpoints(workdir, **saved)) as checkpoints,
    ):
        former = checkpoints.restore(new.shapes)
        if former is not None and not same(former[0].params, state.params):
            raise ConfigError(f"workdir: {workdir} has other parameters than {start}; use another")
        if jax.process_index() == 0:
            write_description(workdir, new.source, new.data.sources)
            records = segments.read(start / writers.METRICS)
            if former is None and records is not None:  # only now: stages may add records later
                storage.write(workdir / writers.METRICS, records)
        if former is None:
            checkpoints.save(step, state)
    return new


def _data_sets(config: Mapping[str, Any]) -> dict[str, str]:
    """Name -> a text that is equal for equal specs: of `Data.sources`, and '' of `data.train`."""
    data = config["data"]
    sets = assignment.parse(data.get("particles") or assignment.SHARED)[1].get("sets", ())
    specs = {"": data["train"], **(data.get("streams") or {})}
    specs |= {f"particles.{i}": spec for i, spec in enumerate(sets)}
    return {name: key_of(spec) for name, spec in specs.items()}


def main(argv: list[str]) -> None:
    changes = config_lib.assignments(argv[1:], "--config.")
    setup_logging()
    if START.value:
        experiment = begin_from(START.value, WORKDIR.value, changes)
    elif changes:
        raise ConfigError(
            f"--config.{next(iter(changes))}: only a new run, with --start, may have another config"
        )
    else:
        experiment = evaluate.open_run(WORKDIR.value, examples=True)
    if not experiment.stages:
        raise ConfigError("config.stages: empty, so there is nothing to run")
    run(experiment, WORKDIR.value)
    print(f"next: python -m experiments.evaluate --workdir {WORKDIR.value}")


if __name__ == "__main__":
    from experiments.runtime import program

    WORKDIR = flags.DEFINE_string("workdir", None, "The run's directory.")
    START = flags.DEFINE_string("start", None, "A run whose parameters a new run starts from.")
    flags.mark_flags_as_required(["workdir"])
    program.run(main)
