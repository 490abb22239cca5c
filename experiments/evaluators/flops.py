"""Floating point operations of a training step and of a prediction, from compiled programs."""

import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from experiments.data.examples import batch_shapes
from experiments.evaluators import Evaluator
from uncertainty import build
from uncertainty.model import count_parameters
from uncertainty.types import State

if TYPE_CHECKING:
    from experiments.prediction.predictor import Predictor
    from experiments.prediction.trained import Run

TRAIN, PREDICT = "cost/train_flops_per_example", "cost/predict_flops_per_example"
TOTAL, PARAMETERS = "cost/total_predict_flops_per_example", "cost/total_parameters"


def flops(features: Sequence[Mapping[str, Any]] = ()) -> Evaluator:
    """`cost/train_flops_per_example`, `cost/predict_flops_per_example`: XLA's count for all P M.

    A product of [A, B] and [B, C] counts 2 A B C, and elementwise arithmetic counts too; exp, tanh
    and the like do not. Training includes the backward pass and the optimiser, but no stage after
    training. Batches are those of the config: experts compute all their slots, whether filled or
    not. Several runs are summed.

    XLA counts the body of a loop once, and nothing inside library calls. So one particle's program
    is compiled for CPU, without microbatches, and multiplied by P; particles that interact are
    vmapped. Factorisations (Cholesky, eigenvalues), sorts, and loops within a layer are not
    counted.

    Where inputs are features that networks computed beforehand, `cost/total_parameters` and
    `cost/total_predict_flops_per_example` add these networks.

    Args:
      features: the backbones whose features the inputs are, each as dict(backbone=its section of a
        config, shape=of its inputs), such as shape=(32, 32, 3).

    Raises:
      ValueError: a missing, unknown or wrong field of one.
    """
    given = [_checked(one, f"features[{i}]") for i, one in enumerate(features)]

    def run(predict: "Predictor") -> Iterator[tuple[str, Any]]:
        each = [flops_of(one.experiment) for one in predict.runs]
        counts = {k: sum(v) for k, v in zip((TRAIN, PREDICT), zip(*each, strict=True), strict=True)}
        yield from counts.items()
        if given:
            before = [_of_backbone(json.dumps(one, sort_keys=True)) for one in given]
            own = sum(count_parameters(one.state) for one in predict.runs)
            yield PARAMETERS, own + sum(parameters for parameters, _ in before)
            yield TOTAL, counts[PREDICT] + sum(operations for _, operations in before)

    return Evaluator(run, None, {TRAIN, PREDICT} | ({TOTAL, PARAMETERS} if given else set()))


def _checked(one: Any, field: str) -> dict[str, Any]:
    """A network of features as a plain dict, whose backbone can be built.

    Raises:
      ValueError: a missing, unknown or wrong field.
    """
    if not isinstance(one, Mapping) or set(one) != {"backbone", "shape"}:
        raise ValueError(f"{field}: {one!r}; dict(backbone=..., shape=...) is needed")
    build.make("backbones", one["backbone"], f"{field}.backbone")
    shape = one["shape"]
    if not isinstance(shape, list | tuple) or not all(type(n) is int and n > 0 for n in shape):
        raise ValueError(f"{field}.shape: {shape!r}; that of an input, such as (32, 32, 3)")
    return dict(backbone=one["backbone"], shape=list(shape))


@functools.cache
def _of_backbone(text: str) -> tuple[int, float]:
    """Parameters, and operations for one example at prediction, of a backbone in JSON."""
    spec = json.loads(text)
    backbone = build.make("backbones", spec["backbone"], "features.backbone")
    x = jax.ShapeDtypeStruct((1, 1, *spec["shape"]), jnp.float32)
    key = jax.random.key(0)
    variables = jax.eval_shape(functools.partial(backbone.init, train=False), key, x)

    def forward(variables: Any, x: jax.Array) -> jax.Array:
        return backbone.apply(variables, x, train=False)

    parameters = sum(math.prod(a.shape) for a in jax.tree.leaves(variables["params"]))
    return parameters, counted(forward, variables, x)


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


def counted(fn: Callable[[Any, Any], Any], state: Any, batch: Any) -> float:
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
