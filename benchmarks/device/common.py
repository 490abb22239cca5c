"""What the parts share: configs, batches, our updates and PyTorch's sides."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from benchmarks import timing
from benchmarks.device.measure import Job, Run, Side, compiled, products, repeated
from uncertainty import build

BATCHES, COMPARED = 4, 3
ADAM = dict(rate=1e-3, eps=1e-5)  # with a small eps, rounding errors would be full steps
# name -> backbone, input, and how PyTorch's side calls it
NETWORKS: dict[str, Any] = {
    "MLP 784-200-200-10": (
        dict(name="mlp.MLP", widths=(200, 200)),
        (784,),
        dict(network="mlp"),
    ),
    "LeNet5": (dict(name="lenet.LeNet5"), (28, 28, 1), dict(network="lenet")),
    "ResNet-20": (
        dict(name="resnet.ResNet", depth=20),
        (32, 32, 3),
        dict(network="resnet", depth=20),
    ),
}
RESNET8 = (dict(name="resnet.ResNet", depth=8), (32, 32, 3), dict(network="resnet", depth=8))


def network(name: str, small: bool) -> Any:
    """An entry of NETWORKS; with small sizes, ResNet-8 in place of ResNet-20."""
    return RESNET8 if small and name == "ResNet-20" else NETWORKS[name]


def label(name: str, small: bool) -> str:
    """The name of `network(name, small)`."""
    return "ResNet-8" if small and name == "ResNet-20" else name


def config(backbone: Mapping[str, Any], size: int = 1, **fields: Any) -> dict[str, Any]:
    """Sections of a config; `fields` are sections, or fields of `inference`."""
    sections = {key: fields.pop(key) for key in ("ensemble", "optimiser") if key in fields}
    adam = dict(name="adam", learning_rate=ADAM["rate"], eps=ADAM["eps"])
    return (
        dict(
            backbone=dict(backbone),
            ensemble="single",
            head=dict(name="dense.Dense", outputs=10),
            likelihood="softmax",
            optimiser=adam,
            steps=1_000_000,
            inference=dict(name="particles", size=size, **fields),
        )
        | sections
    )


def batches(shape: Sequence[int], B: int) -> dict[str, np.ndarray]:
    """x [N, B, ...] and y [N, B]: classes that can be told apart."""
    return timing.classes(shape, BATCHES, B)


def arrays(params: Any) -> dict[str, np.ndarray]:
    """path -> values; the names that `torch_side.py` reads."""
    return {k: np.asarray(a) for k, a in traverse_util.flatten_dict(params, sep="/").items()}


def updates(
    sections: Mapping[str, Any],
    data: Mapping[str, np.ndarray],
    precision: str = "tf32",
    steps_a_call: int = 1,
    seed: int = 0,
    compare: bool = True,
) -> tuple[Side, dict[str, np.ndarray]]:
    """The compiled update of a config over batches that are on the device, and its initial arrays.

    Args:
      sections: of a config.
      data: see `batches`.
      precision: of float32 products, see `measure.PRODUCTS`.
      steps_a_call: a divisor of the number of batches; above 1, they are scanned on the device.
      seed: of the parameters.
      compare: whether the side has losses, [COMPARED, P], to be compared with other sides'.
    """
    algorithm = build.inference(sections, num_examples=1)
    ready = jax.device_put(data)
    each = [{key: a[i] for key, a in ready.items()} for i in range(BATCHES)]
    update: Callable = algorithm.update
    if steps_a_call > 1:
        each = [
            {key: a[i : i + steps_a_call] for key, a in ready.items()}
            for i in range(0, BATCHES, steps_a_call)
        ]
        update = lambda state, batch: jax.lax.scan(algorithm.update, state, batch)  # noqa: E731

    def start() -> Any:
        return algorithm.init(jax.random.key(seed), data["x"][0])

    with products(precision):
        program, about = compiled(update, start(), each[0], donate=(0,))
    initial = arrays(start().params)
    about["parameters"] = sum(a.size for a in initial.values())
    held = {"state": start(), "done": 0}

    def call() -> Any:
        held["state"], metrics = program(held["state"], each[held["done"] % len(each)])
        held["done"] += 1
        return metrics["nll"]

    losses = None
    if compare:
        nll = [np.asarray(call()) for _ in range(math.ceil(COMPARED / steps_a_call))]
        nll = np.concatenate([a.reshape(steps_a_call, a.shape[-3], -1) for a in nll])
        losses = nll.mean(-1)[:COMPARED]
    block = repeated(call)

    def steps(number: int) -> float:
        calls = math.ceil(number / steps_a_call)
        return block(calls) * number / (calls * steps_a_call)

    steps(1)
    return Side(steps, losses, about), initial


def torch_side(run: Run, job: str, method: str, file: str, **request: Any) -> Side:
    """A side that `torch_side.py` makes of the arrays of a file."""
    name = f"{job}: {method}"
    like = f"{job}: {request['like']}" if "like" in request else None
    asked = request | dict(like=like, method=method, file=file, name=name)
    answer = run.torch(do="make", **{"precision": "tf32", "adam": ADAM} | asked)
    losses = np.asarray(answer.pop("losses")) if "losses" in answer else None

    def block(steps: int) -> float:
        return run.torch(do="time", name=name, steps=steps)["seconds"]

    return Side(block, losses, answer)


def torch_methods(convolutions: bool) -> list[tuple[str, dict[str, Any]]]:
    """Methods of `torch_side.Ensemble` with what they need, from quick to slow to compile."""
    last = ", channels last" if convolutions else ""
    formats = [("loop", {})] + ([("loop, channels last", {})] if convolutions else [])
    return [
        *formats,
        (f"loop{last}, CUDA graph", {}),
        ("vmap", {}),
        ("vmap, CUDA graph", {}),
        (f"loop{last}, compile", {}),
        (f"loop{last}, compile, CUDA graph", dict(like=f"loop{last}, compile")),
        ("vmap, compile", {}),
        ("vmap, compile, CUDA graph", dict(like="vmap, compile")),
    ]


def add_torch(job: Job, methods: Sequence[tuple[str, dict[str, Any]]], **request: Any) -> None:
    """Adds sides of PyTorch to a job while the part has time; what is left out has its reason."""
    for method, more in methods:
        name = f"PyTorch: {method}"
        if job.run.left() < 0:
            job.missing[name] = "the time of this part was over"
            continue
        make = functools.partial(
            torch_side, job.run, job.title, method, **request, **more, compare=COMPARED
        )
        job.add(name, make)


def flops(function: Callable, *arguments: Any) -> float | None:
    """Of the program before any optimisation, by XLA's count; products and convolutions mostly."""
    cost = jax.jit(function).lower(*arguments).cost_analysis()
    return None if cost is None else float(cost.get("flops", math.nan))


def forward_flops(backbone: Mapping[str, Any], shape: Sequence[int]) -> float | None:
    """FLOPs of the logits of one example."""
    model = build.model(config(backbone))
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    key = jax.random.key(0)
    params, collections = jax.eval_shape(model.init, key, x)
    forward = functools.partial(model.forward, train=False)
    return flops(lambda p, c, x: forward(p, c, x, key)[0].mean, params, collections, x)
