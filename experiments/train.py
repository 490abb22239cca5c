"""The train loop: the only one, read from top to bottom.

    python -m experiments.train --config configs/digits/mlp.py:size=10 --workdir runs/ensemble

trains, saves checkpoints, resumes where it was interrupted, and evaluates at the end. A run that is
told to stop (SIGTERM, SIGINT) saves first and exits with 128 + the number of the signal.
"""

import contextlib
import json
import logging
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import evaluate, stage
from experiments.data.description import describe, write_description
from experiments.data.loader import depth, prefetch
from experiments.evaluators import routing
from experiments.experiment import config as config_lib
from experiments.experiment.build import Experiment, setup
from experiments.runtime import execution, processes, writers
from experiments.runtime.checkpoint import Checkpoints, check_step, of_training
from experiments.runtime.progress import Finished, Progress, format_losses, setup_logging
from experiments.runtime.termination import Interrupted, Stop, graceful_termination
from experiments.runtime.workdir import CONFIG as CONFIG_FILE
from experiments.runtime.workdir import fields, jsonable, locked, open_workdir
from uncertainty import build

logger = logging.getLogger(__name__)


class ParticleFault(FloatingPointError):
    """A particle's step or predictions are not finite, and the config says to stop."""


# What the processes of one training may have each for itself.
OWN = ("pretrained.path", "logging.tensorboard", "logging.profile")


def train(
    config: Mapping[str, Any],
    workdir: str | pathlib.Path,
    *,
    overview: bool = True,
    evaluated: bool = True,
) -> Experiment:
    """Trains to `config.steps`, from the newest checkpoint of `workdir` if there is one.

    A run that is resumed by the same code, with the same mesh and executor on the same kind of
    devices, ends with the bits of one that was not interrupted. With others it is the same training
    to rounding.

    Args:
      config: of `configs`.
      workdir: the run's directory.
      overview: whether a new run logs a table of its parameters.
      evaluated: whether the run will be evaluated, so that the evaluators' data are checked first.

    Returns:
      The experiment; its final state is the newest checkpoint.

    Raises:
      ConfigError: before anything is compiled, or written. The processes of one training may also
        differ: in a field, their data or their code.
      ParticleFault: with `on_fault='stop'`; what was saved before stays.
      Interrupted: SIGTERM or SIGINT came; the state is saved first.
    """
    experiment = setup(config, evaluated=evaluated)
    config = experiment.config
    if jax.process_count() > 1:  # it takes a digest of the data and of the sources
        processes.agree(what_runs(experiment))
    workdir = pathlib.Path(workdir).expanduser().absolute()
    if jax.process_index() == 0:
        open_workdir(workdir, config, ignore=config_lib.MAY_CHANGE)
    with locked(workdir), graceful_termination() as stop:
        if jax.process_index() == 0:
            write_description(workdir, experiment.source)
        processes.barrier()
        processes.agree(what_is_there(workdir))
        _train(experiment, workdir, stop, overview)
    return experiment


def what_runs(experiment: Experiment) -> dict[str, str]:
    """What the processes of one training must have in common: config, data and code."""
    config = fields(experiment.config, OWN)
    data = describe(experiment.source)
    return {
        **{f"config.{name}": value for name, value in config.items()},
        **{f"data: {name}": json.dumps(jsonable(value)) for name, value in data.items()},
        **processes.code(),
    }


def what_is_there(workdir: pathlib.Path) -> dict[str, str]:
    """What the processes of one training must see of a workdir, which lies on a shared disk."""
    steps = Checkpoints(workdir, read_only=True).steps()
    there = "there" if (workdir / CONFIG_FILE).is_file() else "missing"
    return {f"{workdir}: {CONFIG_FILE}": there, f"{workdir}: checkpoints": str(steps)}


def _train(experiment: Experiment, workdir: pathlib.Path, stop: Stop, overview: bool) -> None:
    config, mesh = experiment.config, experiment.mesh
    steps = config["steps"]
    rounding = execution.rounding(experiment)
    checkpoints = Checkpoints(
        workdir, keep=config["checkpoint"]["keep"], config=of_training(config), execution=rounding
    )
    restored = checkpoints.restore(experiment.shapes)
    state, start = restored or (experiment.init(), 0)
    check_step(state, start)
    if start:
        logger.info("resuming from step %d of %d", start, steps)
        if changed := checkpoints.executed_otherwise(start):
            logger.info("%s: from here on the same training to rounding, not bit for bit",
                        "; ".join(changed))  # fmt: skip
    elif overview and jax.process_index() == 0:
        writers.log_parameters(state.params)
    if start >= steps:
        return

    learning_rate = jax.jit(build.schedule(config))
    validate = evaluate.validation(experiment) if config["evaluation"]["every"] else None
    every = config["logging"]["every"]
    put = execution.put_batch(mesh, experiment.inference.own_examples)
    alone = jax.process_count() == 1
    ahead = depth(experiment.source, config["batch_size"])
    update = None
    faults = Faults(config["on_fault"], start, experiment.inference.separable)
    finished = Finished(start)
    with (
        contextlib.closing(
            writers.Writer(workdir, start, tensorboard=config["logging"]["tensorboard"])
        ) as writer,
        contextlib.closing(writers.Profile(workdir, config["logging"]["profile"])) as profile,
        contextlib.closing(checkpoints),
        Progress(
            steps, "train", finished=finished, start=start, show=jax.process_index() == 0
        ) as progress,
        prefetch(experiment.batches(start), put, ahead) as stream,
    ):
        clock = Clock(writer.seconds)
        for step, batch in stream:
            if update is None:
                update = execution.compile_update(experiment, state, batch)
            with profile(step):
                state, metrics = update(state, batch)
            done = step + 1
            faults.add(metrics["finite"], metrics["loss"])
            finished.add(done, metrics["loss"])
            text = None
            if done % every == 0 or done in (start + 1, steps):
                record, text = summary(execution.host(metrics))
                faults.check(done)
                if "routing" in state.collections:
                    found = routing.counted(execution.host(state.collections["routing"]))
                    record, text = record | found, f"{text} · {routing.text(found)}"
                record["learning_rate"] = float(learning_rate(step))
                if done % every == 0 or done == steps:
                    writer.write(done, {**record, **clock.record(done)})
                if done == start + 1:
                    clock.mark(done)
                    logger.info("first step, with its compilation: %.1f s", clock.seconds())
            progress.update(done, text)
            if validate and done % config["evaluation"]["every"] == 0 and done < steps:
                try:
                    found = validate(state)
                except FloatingPointError as error:
                    raise ParticleFault(f"validation at step {done}: {error}") from error
                writer.write(done, {f"validation/{k}": v for k, v in found.items()})
            # Several processes agree to stop where they meet anyway.
            meeting = alone or done % every == 0 or done == steps
            told = processes.any_signal(stop) if meeting else None
            if done % config["checkpoint"]["every"] == 0 or done == steps or told:
                faults.check(done)
                checkpoints.save(done, state)
            if told:
                raise Interrupted(f"stopped by {told} at step {done} of {steps}; saved", told)
            if done == steps:
                break


def summary(metrics: Mapping[str, np.ndarray]) -> tuple[dict[str, float], str]:
    """What is written and shown of an update's metrics: loss per member and of the ensemble.

    Without labels there is a loss of each particle alone. What an objective reports besides is
    averaged. Particles whose step was not finite are left out of all but their own losses.
    """
    sound = metrics["finite"] if metrics["finite"].any() else slice(None)  # of [P]
    others = sorted(set(metrics) - {"loss", "gradient_norm", "finite", "nll"})
    record = {
        name: float(np.mean(metrics[name][sound])) for name in ("loss", "gradient_norm", *others)
    }
    if "nll" not in metrics:
        losses = np.asarray(metrics["loss"], np.float64)
        if len(losses) > 1:
            record |= {f"loss/{i}": float(value) for i, value in enumerate(losses)}
        return record, format_losses(losses, None)
    nll = np.asarray(metrics["nll"], np.float64)  # [P, M, B]
    members = nll.mean(axis=-1).ravel()  # [P M]
    flat = -nll[sound].reshape(-1, nll.shape[-1])  # log p(y), [P M, B]
    peak = flat.max(axis=0)
    mixture = peak + np.log(np.mean(np.exp(flat - peak), axis=0))
    record["ensemble_loss"] = float(-np.mean(mixture))
    if len(members) > 1:
        record |= {f"loss/{i}": float(value) for i, value in enumerate(members)}
    return record, format_losses(members, record["ensemble_loss"] if len(members) > 1 else None)


class Faults:
    """Which particles had a step that was not finite; looked at only when the loop waits anyway."""

    def __init__(self, policy: str, step: int, separable: bool):
        self.policy, self.step, self.separable = policy, step, separable
        self._pending: list[tuple[jax.Array, jax.Array]] = []
        self._named: set[int] = set()

    def add(self, finite: jax.Array, loss: jax.Array) -> None:
        self._pending.append((finite, loss))

    def check(self, step: int) -> None:
        """Names each new faulty particle.

        Raises:
          ParticleFault: if the config says to stop, or no particle is left.
        """
        if not self._pending:
            return
        finite, loss = (np.stack(a) for a in zip(*execution.host(self._pending), strict=True))
        if not finite.any(axis=1).all() and not np.isfinite(loss).all():
            finite = np.isfinite(loss)  # [steps, P]; where particles interact, who began it
        first, self._pending, self.step = self.step + 1, [], step
        for particle in np.flatnonzero(~finite.all(axis=0)):
            at = first + int(np.flatnonzero(~finite[:, particle])[0])
            message = f"particle {particle}: loss, gradient or update is not finite at step {at}"
            if self.policy == "stop":
                freeze = ", or set on_fault='freeze' to let the other particles go on"
                raise ParticleFault(f"{message}. Lower the learning rate or clip the gradient"
                                    f"{freeze if self.separable else ''}.")  # fmt: skip
            if particle not in self._named:
                logger.warning("%s; such steps leave it as it is, the others go on", message)
                self._named.add(int(particle))
        if not finite.any():
            raise ParticleFault(f"no particle has had a finite step since step {first}")


class Clock:
    """Seconds of training, those before an interruption included."""

    def __init__(self, before: float):
        self._before, self._began = before, time.monotonic()
        self._mark: tuple[float, int] | None = None

    def seconds(self) -> float:
        return time.monotonic() - self._began

    def mark(self, step: int) -> None:
        """Begins to count steps per second after `step`."""
        self._mark = (self.seconds(), step)

    def record(self, step: int) -> dict[str, float]:
        now = self.seconds()
        record = {"seconds": self._before + now}
        if self._mark and now > self._mark[0]:
            record["steps_per_second"] = (step - self._mark[1]) / (now - self._mark[0])
        self.mark(step)
        return record


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
    CONFIG = flags.DEFINE_string(
        "config", None, "configs/FILE.py or configs/FILE.py:OPTION,OPTION=VALUE such as :runlocal; "
        "--config.section.field=value sets a field of it."
    )  # fmt: skip
    WORKDIR = flags.DEFINE_string("workdir", None, "The run's directory.")
    DISTRIBUTED = flags.DEFINE_string(
        "distributed", None, "On several hosts, started on each: 'auto', or HOST:PORT,COUNT,INDEX."
    )
    EVALUATE = flags.DEFINE_bool("evaluate", True, "Evaluate at the end.")
    flags.mark_flags_as_required(["config", "workdir"])
    config_lib.run(main)
