"""Trains a ResNet-20 ensemble on a part of CIFAR-10, all on the device."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.device import common, subset
from benchmarks.device.measure import Run, compiled, products
from uncertainty import build
from uncertainty.metrics import evaluate_classification

# Published peaks of dense products in TFLOP/s (NVIDIA's data sheets of A100, H100 and H200, SXM).
PEAKS = {
    "H200": {"float32": 67.0, "tf32": 494.7, "bfloat16": 989.4},
    "H100": {"float32": 67.0, "tf32": 494.7, "bfloat16": 989.4},
    "A100": {"float32": 19.5, "tf32": 156.0, "bfloat16": 312.0},
}
RATE, MOMENTUM, DECAY, PAD = 0.1, 0.9, 5e-4, 4


def augment(key: jax.Array, x: jax.Array) -> jax.Array:
    """Random crops of the images [B, H, W, C] padded by 4 zeros, and flips; each its own."""
    B, H, W, _ = x.shape
    crop, flip = jax.random.split(key)
    padded = jnp.pad(x, ((0, 0), (PAD, PAD), (PAD, PAD), (0, 0)))
    at = jax.random.randint(crop, (B, 2), 0, 2 * PAD + 1)
    rows, columns = at[:, :1] + jnp.arange(H), at[:, 1:] + jnp.arange(W)  # [B, H], [B, W]
    mirrored = jax.random.bernoulli(flip, shape=(B, 1))
    columns = jnp.where(mirrored, columns[:, ::-1], columns)
    return padded[jnp.arange(B)[:, None, None], rows[:, :, None], columns[:, None, :]]


def epoch(update: Callable, batch: int) -> Callable:
    """state, images [N, ...], labels [N], key -> state, losses [steps, P]; one program."""

    def run(state: Any, x: jax.Array, y: jax.Array, key: jax.Array) -> tuple[Any, jax.Array]:
        order, crops = jax.random.split(key)
        steps = len(y) // batch
        index = jax.random.permutation(order, len(y))[: steps * batch].reshape(steps, batch)

        def step(state: Any, of: Any) -> tuple[Any, jax.Array]:
            rows, key = of
            state, metrics = update(state, dict(x=augment(key, x[rows]), y=y[rows]))
            return state, metrics["loss"]

        return jax.lax.scan(step, state, (index, jax.random.split(crops, steps)))

    return run


def utilisation(flops_per_second: float, device: str, precision: str = "tf32") -> float | None:
    """Over the published peak of the device; None where it is not in PEAKS."""
    peaks = next((v for name, v in PEAKS.items() if name in device), None)
    return None if peaks is None else flops_per_second / (1e12 * peaks[precision])


def training(run: Run) -> Iterator[list[dict[str, Any]]]:
    """P = 4, SGD with momentum and a cosine schedule; stops early where time is over.

    The number of epochs is fixed, so that the result does not depend on the speed of the device.
    """
    data = subset.load(run.data)
    P, B, epochs = (2, 32, 2) if run.small else (4, 128, 60)
    if run.small:
        data = {k: a[:320] for k, a in data.items()}
    backbone, shape, _ = common.network("ResNet-20", run.small)
    images = data["x_train"].astype(np.float32) / 255
    mean, std = images.mean((0, 1, 2)), images.std((0, 1, 2))
    x, y = jnp.asarray((images - mean) / std), jnp.asarray(data["y_train"].astype(np.int32))
    test = jnp.asarray((data["x_test"].astype(np.float32) / 255 - mean) / std)
    steps = len(y) // B
    optimiser = dict(
        name="sgd", momentum=MOMENTUM, nesterov=True, learning_rate=RATE, schedule="cosine",
        l2=[["kernel", DECAY]],
    )  # fmt: skip
    sections = common.config(backbone, P, optimiser=optimiser) | dict(steps=steps * epochs)
    made = build.inference(sections, num_examples=len(y))
    state = made.init(jax.random.key(0), x[:2])
    with products("tf32"):
        program, about = compiled(
            epoch(made.update, B), state, x, y, jax.random.key(1), donate=(0,)
        )
        predict = jax.jit(lambda state, x: jax.nn.log_softmax(made.predict(state, x).mean))
        parts = np.array_split(np.arange(len(test)), -(-len(test) // 500))
        evaluated = [(part, test[part[0] : part[-1] + 1]) for part in parts]
        jax.block_until_ready([predict(state, x) for _, x in evaluated])  # compiles

    done, spent, losses = 0, 0.0, np.full((1, P), np.nan)
    keys = jax.random.split(jax.random.key(1), epochs)
    rates: list[float] = []
    while done < epochs and (done < 2 or spent / done < run.left() - 3):
        began = time.perf_counter()
        state, on_device = program(state, x, y, keys[done])
        losses = np.asarray(on_device)
        rates.append(steps * B / (time.perf_counter() - began))
        spent, done = spent + time.perf_counter() - began, done + 1
    log_p = np.concatenate([np.asarray(predict(state, x)) for _, x in evaluated], axis=1)
    labels = data["y_test"].astype(np.int64)

    def metrics(log_p: np.ndarray) -> dict[str, float]:
        all_ = evaluate_classification(log_p, labels)
        names = ("classification/nll", "classification/accuracy", "calibration/ece")
        return {name.split("/")[1]: float(all_[name]) for name in names}

    ensemble, members = metrics(log_p), [metrics(log_p[p : p + 1]) for p in range(P)]
    forward = common.forward_flops(backbone, shape)
    rate = max(rates)  # images per second, each seen by all members
    flops = None if forward is None else 3 * forward * P * rate
    device = jax.devices()[0].device_kind
    values: dict[str, Any] = dict(
        data=f"{len(y):,} training and {len(labels):,} test images",
        epochs=f"{done} of {epochs}" + ("" if done == epochs else ", cut off by the time"),
        training_loss=float(losses.mean()),
        **{f"ensemble {name}": value for name, value in ensemble.items()},
        **{
            f"mean of members {name}": float(np.mean([m[name] for m in members]))
            for name in ensemble
        },
        members=members,
        **{"images a second (best epoch)": rate},
        **{"images a second (median)": float(np.median(rates))},
        **{"member images a second (best epoch)": P * rate},
        **{"seconds of training": spent, "seconds of compilation": about["compile_seconds"]},
        **{"peak, MB": about.get("megabytes")},
        **{"model GFLOP of an image and member (3 x forward)": forward and 3 * forward / 1e9},
        **{"model TFLOP/s": flops and flops / 1e12},
        **{"model FLOP utilisation (TF32 peak)": flops and utilisation(flops, device)},
    )
    name = common.label("ResNet-20", run.small)
    title = f"training {name}, P = {P}, batch {B}, crops, flips"
    yield [dict(title=title, sides={}, missing={}, ratios={}, values=values)]
