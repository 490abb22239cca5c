"""The only loop, for training and for stages. Read it from top to bottom.

It depends on no experiment or program, only on a carry (a State, or what else the update takes), an
update, a stream of batches, and services.
"""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from experiments.runtime import execution, processes
from experiments.runtime.checkpoint import Checkpoints
from experiments.runtime.progress import Finished, Progress, format_losses
from experiments.runtime.termination import Interrupted, Stop
from experiments.runtime.writers import Profile, Writer
from uncertainty.types import Batch, Metrics

logger = logging.getLogger(__name__)

Carry = Any
Update = Callable[[Carry, Batch], tuple[Carry, Metrics]]


class ParticleFault(FloatingPointError):
    """A particle's step or predictions are not finite, with `on_fault='stop'`."""


@dataclasses.dataclass(frozen=True)
class Services:
    """Records, checkpoints and checks of a loop, with their intervals in steps.

    Attributes:
      stop: whether the process was asked to stop.
      writer: of the records.
      checkpoints: of the carry.
      faults: checks the losses of an update that trains.
      log_every, save_every: steps.
      own_examples: whether each particle sees its own examples.
      before: steps of the run before this loop, for the records.
      learning_rate: of a step of this loop.
      monitor: carry -> values for the record, and a short text for the progress line.
      profile: traces steps.
      validate: carry -> metrics, every `validate_every` steps.
    """

    stop: Stop
    writer: Writer
    checkpoints: Checkpoints
    faults: "Faults"
    log_every: int
    save_every: int
    own_examples: bool = False
    before: int = 0
    learning_rate: Callable[[int], Any] | None = None
    monitor: Callable[[Carry], tuple[Mapping[str, float], str]] | None = None
    profile: Profile | None = None
    validate: Callable[[Carry], Mapping[str, float]] | None = None
    validate_every: int = 0


def run(
    name: str,
    carry: Carry,
    update: Update,
    stream: Iterator[tuple[int, Batch]],
    start: int,
    steps: int,
    services: Services,
) -> Carry:
    """The carry after steps `start` to `steps`; the caller saves the final one.

    Args:
      name: of the loop, for the progress line and messages.
      carry: at `start`; it may be donated.
      update: (carry, batch) -> carry, metrics. If it keeps a carry in a form of its own, its
        attribute `whole` turns that into a carry. Its metrics have at least one array. If it trains
        they are those of `Inference.update`: `loss`, `finite`, `gradient_norm` [P], and with labels
        `nll` [P, M, B].
      stream: of (step, batch), from step `start` on.
      start: steps that are done.
      steps: the total at the end.
      services: see `Services`.

    Raises:
      ParticleFault: with `on_fault='stop'`, or if no particle is left.
      Interrupted: SIGTERM or SIGINT came; the carry is saved first.
    """
    learning_rate = services.learning_rate and jax.jit(services.learning_rate)
    writer, faults, finished = services.writer, services.faults, Finished(start)
    alone, first = jax.process_count() == 1, jax.process_index() == 0
    profile = services.profile or Profile(writer.path.parent, ())
    clock = Clock(writer.seconds)
    whole = getattr(update, "whole", lambda carry: carry)
    with Progress(steps, name, finished=finished, start=start, show=first) as progress:
        for step in range(start, steps):
            _, batch = next(stream)
            with profile(step):
                carry, metrics = update(carry, batch)
            done, trains, text = step + 1, "loss" in metrics, None
            finished.add(done, next(iter(metrics.values())))
            logged = done % services.log_every == 0 or done == steps
            if trains:
                faults.add(metrics["finite"], metrics["loss"])
            if trains and (logged or done == start + 1):
                record, text = summary(execution.host(metrics), services.own_examples)
                faults.check(done)
                if services.monitor:
                    values, monitored = services.monitor(whole(carry))
                    record, text = {**record, **values}, " · ".join(filter(None, (text, monitored)))
                if learning_rate:
                    record["learning_rate"] = float(learning_rate(step))
                if logged:
                    writer.write(services.before + done, {**record, **clock.record(done)})
            if done == start + 1:
                jax.block_until_ready(metrics)
                clock.mark(done)
                logger.info("first step, with its compilation: %.1f s", clock.seconds())
            progress.update(done, text)
            if services.validate and done % services.validate_every == 0 and done < steps:
                try:
                    values = services.validate(whole(carry))
                except FloatingPointError as error:
                    raise ParticleFault(f"validation at step {done}: {error}") from error
                writer.write(
                    services.before + done, {f"validation/{k}": v for k, v in values.items()}
                )
            # Several processes agree to stop where they synchronise anyway.
            meeting = alone or done % services.log_every == 0 or done == steps
            signal = processes.any_signal(services.stop) if meeting else None
            if signal or (done % services.save_every == 0 and done < steps):
                faults.check(done)
                writer.flush()
                services.checkpoints.save(done, whole(carry))
            if signal:
                message = f"{name} stopped by {signal} at step {done} of {steps}; saved"
                raise Interrupted(message, signal)
        jax.block_until_ready(carry)
    return whole(carry)


def summary(
    metrics: Mapping[str, np.ndarray], own_examples: bool = False
) -> tuple[dict[str, float], str]:
    """The record of an update's metrics: loss per member and of the ensemble.

    Without labels only particles have losses, and if particles see their own examples the ensemble
    has none. Further metrics of the objective are averaged. Particles whose step was not finite
    count only in their own losses.
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
    if len(members) > 1:
        record |= {f"loss/{i}": float(value) for i, value in enumerate(members)}
    if own_examples:
        return record, format_losses(members, None)
    flat = -nll[sound].reshape(-1, nll.shape[-1])  # log p(y), [P M, B]
    peak = flat.max(axis=0)
    mixture = peak + np.log(np.mean(np.exp(flat - peak), axis=0))
    record["ensemble_loss"] = float(-np.mean(mixture))
    return record, format_losses(members, record["ensemble_loss"] if len(members) > 1 else None)


class Faults:
    """The particles whose steps were not finite; checked only when the loop waits anyway.

    Args:
      policy: the config's `on_fault`.
      step: from which the loop starts.
      separable: whether the other particles can continue.
      where: follows the number of a step in messages, such as ' of swag'.
    """

    def __init__(self, policy: str, step: int, separable: bool, where: str = ""):
        self.policy, self.step, self.separable, self.where = policy, step, separable, where
        self._pending: list[tuple[jax.Array, jax.Array]] = []
        self._named: set[int] = set()

    def add(self, finite: jax.Array, loss: jax.Array) -> None:
        self._pending.append((finite, loss))

    def check(self, step: int) -> None:
        """Reports each new faulty particle.

        Raises:
          ParticleFault: with `on_fault='stop'`, or if no particle is left.
        """
        if not self._pending:
            return
        finite, loss = (np.stack(a) for a in zip(*execution.host(self._pending), strict=True))
        if not finite.any(axis=1).all() and not np.isfinite(loss).all():
            finite = np.isfinite(loss)  # [steps, P]; shows the first of particles that interact
        first, self._pending, self.step = self.step + 1, [], step
        for particle in np.flatnonzero(~finite.all(axis=0)):
            at = f"{first + int(np.flatnonzero(~finite[:, particle])[0])}{self.where}"
            message = f"particle {particle}: loss, gradient or update is not finite at step {at}"
            if self.policy == "stop":
                freeze = ", or set on_fault='freeze' to continue with the other particles"
                raise ParticleFault(
                    f"{message}. Lower the learning rate or clip the gradient"
                    f"{freeze if self.separable else ''}."
                )
            if particle not in self._named:
                logger.warning("%s; it keeps its last finite state, the others continue", message)
                self._named.add(int(particle))
        if not finite.any():
            raise ParticleFault(f"no particle has had a finite step since step {first}{self.where}")


class Clock:
    """Seconds of a loop, including those before an interruption."""

    def __init__(self, before: float):
        self._before, self._began = before, time.monotonic()
        self._mark: tuple[float, int] | None = None

    def seconds(self) -> float:
        return time.monotonic() - self._began

    def mark(self, step: int) -> None:
        """Starts to count steps per second after `step`."""
        self._mark = (self.seconds(), step)

    def record(self, step: int) -> dict[str, float]:
        now = self.seconds()
        record = {"seconds": self._before + now}
        if self._mark and now > self._mark[0]:
            record["steps_per_second"] = (step - self._mark[1]) / (now - self._mark[0])
        self.mark(step)
        return record
