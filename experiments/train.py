"""Training: builds the experiment of a config, runs the loop and the stages, and evaluates.

    python -m experiments.train --config configs/digits/mlp.py:size=10 --workdir runs/ensemble

trains, saves checkpoints, resumes if it was interrupted, and evaluates at the end. On SIGTERM or
SIGINT it saves first and exits with 128 + the number of the signal.
"""

import contextlib
import json
import logging
from collections.abc import Mapping
from typing import Any

import jax
from absl import flags

from experiments import evaluate, stage
from experiments.data.description import describe, write_description
from experiments.data.loader import prefetch
from experiments.experiment import config as config_lib
from experiments.experiment.build import Experiment, setup
from experiments.runtime import loop, processes, storage, writers
from experiments.runtime.checkpoint import Checkpoints, check_step, of_training
from experiments.runtime.progress import setup_logging
from experiments.runtime.termination import Stop, graceful_termination
from experiments.runtime.workdir import CONFIG as CONFIG_FILE
from experiments.runtime.workdir import MAY_CHANGE, fields, jsonable, opened, require_writable

logger = logging.getLogger(__name__)


# Fields that may differ between the processes of one run.
OWN = ("pretrained.path", "logging.tensorboard", "logging.wandb*", "logging.profile")


def train(
    config: Mapping[str, Any],
    workdir: str | storage.Path,
    *,
    overview: bool = True,
    evaluated: bool = True,
) -> Experiment:
    """Trains to `config.steps`, from the newest checkpoint of `workdir` if there is one.

    A run that resumes with the same code, mesh and executor on the same kind of devices ends with
    the same bits as an uninterrupted run; otherwise it is the same up to rounding.

    Args:
      config: of `configs`.
      workdir: the run's directory.
      overview: whether a new run logs a table of its parameters.
      evaluated: whether the run will be evaluated, so that the evaluators' data are checked first.

    Returns:
      The experiment; its final state is the newest checkpoint.

    Raises:
      ConfigError: a wrong config, before anything is compiled or written; or processes of one run
        that differ in config, data or code.
      ParticleFault: with `on_fault='stop'`; earlier checkpoints stay.
      Interrupted: SIGTERM or SIGINT came; the state is saved first.
    """
    workdir = storage.path(workdir).expanduser().absolute()
    if isinstance(workdir, storage.BucketPath):  # every process writes its share there
        require_writable(workdir)
    experiment = setup(config, evaluated=evaluated)
    config = experiment.config
    if jax.process_count() > 1:  # needs digests of the data and of the sources
        processes.agree(what_runs(experiment))
    with opened(workdir, config, ignore=MAY_CHANGE), graceful_termination() as stop:
        if jax.process_index() == 0:
            write_description(workdir, experiment.source, experiment.data.sources)
        processes.barrier()
        processes.agree(what_is_there(workdir))
        _train(experiment, workdir, stop, overview)
    return experiment


def what_runs(experiment: Experiment) -> dict[str, str]:
    """The config, data and code that have to be equal in all processes of one run."""
    config = fields(experiment.config, OWN)
    data = describe(experiment.source, experiment.data.sources)
    return {
        **{f"config.{name}": value for name, value in config.items()},
        **{f"data: {name}": json.dumps(jsonable(value)) for name, value in data.items()},
        **processes.code(),
    }


def what_is_there(workdir: storage.Path) -> dict[str, str]:
    """The contents of the shared workdir that have to be equal in all processes of one run."""
    steps = Checkpoints(workdir, read_only=True).steps()
    config_file = "there" if (workdir / CONFIG_FILE).is_file() else "missing"
    return {f"{workdir}: {CONFIG_FILE}": config_file, f"{workdir}: checkpoints": str(steps)}


def _train(experiment: Experiment, workdir: storage.Path, stop: Stop, overview: bool) -> None:
    config = experiment.config
    steps, logging_, saving = config["steps"], config["logging"], config["checkpoint"]
    checkpoints = Checkpoints(
        workdir,
        keep=saving["keep"],
        config=of_training(config),
        execution=experiment.rounding(),
    )
    restored = checkpoints.restore(experiment.shapes)
    state, start = restored or (experiment.init(), 0)
    check_step(state, start)
    if start:
        logger.info("resuming from step %d of %d", start, steps)
        if changed := checkpoints.executed_otherwise(start):
            logger.info(
                "%s: from here on, results are equal up to rounding, not bit for bit",
                "; ".join(changed),
            )
    elif overview and jax.process_index() == 0:
        writers.log_parameters(state.params)
    if start >= steps:
        return

    ahead = experiment.data.depth(experiment.shapes.key.shape[0])
    with (
        contextlib.closing(
            writers.Writer(
                workdir,
                start,
                tensorboard=logging_["tensorboard"],
                wandb=logging_.get("wandb", False),
            )
        ) as writer,
        contextlib.closing(writers.Profile(workdir, logging_["profile"])) as profile,
        contextlib.closing(checkpoints),
        prefetch(experiment.batches(start), experiment.put, ahead) as stream,
    ):
        services = loop.Services(
            stop=stop,
            writer=writer,
            checkpoints=checkpoints,
            faults=loop.Faults(config["on_fault"], start, experiment.inference.separable),
            own_examples=experiment.data.own_examples,
            log_every=logging_["every"],
            save_every=saving["every"],
            learning_rate=experiment.learning_rate,
            monitor=experiment.monitor if experiment.model.monitors else None,
            profile=profile,
            validate=evaluate.validation(experiment) if config["evaluation"]["every"] else None,
            validate_every=config["evaluation"]["every"],
        )
        state = loop.run("train", state, experiment.update, stream, start, steps, services)
        writer.flush()
        checkpoints.save(steps, state)


def main(argv: list[str]) -> None:
    with processes.joined(DISTRIBUTED.value):
        config = config_lib.load(CONFIG.value, config_lib.assignments(argv[1:], "--config."))
        setup_logging()
        experiment = train(config, WORKDIR.value, evaluated=EVALUATE.value)
        stage.run(experiment, WORKDIR.value)
        if EVALUATE.value:
            _, failures = evaluate.evaluate(experiment, WORKDIR.value)
            evaluate.report(failures)


if __name__ == "__main__":
    from experiments.runtime import program

    CONFIG = flags.DEFINE_string(
        "config",
        None,
        "configs/FILE.py or configs/FILE.py:OPTION,OPTION=VALUE, such as :runlocal; "
        "--config.section.field=value sets a field.",
    )
    WORKDIR = flags.DEFINE_string("workdir", None, "The run's directory; gs:// or s3:// too.")
    DISTRIBUTED = flags.DEFINE_string(
        "distributed", None, "For several hosts, started on each: 'auto', or HOST:PORT,COUNT,INDEX."
    )
    EVALUATE = flags.DEFINE_bool("evaluate", True, "Evaluate at the end.")
    flags.mark_flags_as_required(["config", "workdir"])
    program.run(main)
