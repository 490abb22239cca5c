"""Floating point operations of a training step and of a prediction, from compiled programs."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax

from experiments.data.examples import batch_shapes
from experiments.evaluators import Evaluator
from uncertainty import build
from uncertainty.types import State

if TYPE_CHECKING:
    from experiments.prediction.predictor import Predictor
    from experiments.prediction.trained import Run

TRAIN, PREDICT = "cost/train_flops_per_example", "cost/predict_flops_per_example"


def flops() -> Evaluator:
    """`cost/train_flops_per_example`, `cost/predict_flops_per_example`: XLA's count for all P M.

    A product of [A, B] and [B, C] counts 2 A B C, and elementwise arithmetic counts too; exp, tanh
    and the like do not. Training includes the backward pass and the optimiser, but no stage after
    training. Batches are those of the config: experts compute all their slots, whether filled or
    not. Several runs are summed.

    XLA counts the body of a loop once, and nothing inside library calls. So one particle's program
    is compiled for CPU, without microbatches, and multiplied by P; particles that interact are
    vmapped. Factorisations (Cholesky, eigenvalues), sorts, and loops within a layer are not
    counted.
    """

    def run(predict: "Predictor") -> Iterator[tuple[str, Any]]:
        each = [flops_of(one.experiment) for one in predict.runs]
        for key, values in zip((TRAIN, PREDICT), zip(*each, strict=True), strict=True):
            yield key, sum(values)

    return Evaluator(run, None, {TRAIN, PREDICT})


def flops_of(experiment: "Run") -> tuple[float, float]:
    """Operations of a training step and of a prediction, per example."""
    config, source = experiment.config, experiment.source
    plain = dict(config["inference"], executor="vmap", accumulate=1)
    inference = build.inference(
        {**config, "inference": plain}, experiment.model, num_examples=max(len(source), 1)
    )
    count = counted_once if inference.separable else counted
    particles = 1 if inference.separable else experiment.shapes.key.shape[0]
    train = count(inference.update, experiment.shapes, experiment.data.shapes(particles))
    size = config["evaluation"]["batch_size"]
    x = batch_shapes(source, size)["x"]
    predict = counted_once(inference.predict, experiment.final_shapes, x)
    return train / config["batch_size"], predict / size


# Halves the time to compile; operations are counted before these passes.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def counted(fn: Callable[[State, Any], Any], state: State, batch: Any) -> float:
    """Operations of fn(state, batch), from shapes."""
    state = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), state)  # no sharding
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        program = jax.jit(fn).lower(state, batch).compile(QUICK)
        return float(program.cost_analysis()["flops"])


def counted_once(fn: Callable[[State, Any], Any], state: State, batch: Any) -> float:
    """P times the operations for one particle."""
    one = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype), state.replace(step=None)
    )
    return state.key.shape[0] * counted(fn, one.replace(step=state.step), batch)
