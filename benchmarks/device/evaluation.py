"""Metrics of 50,000 x 1,000 log-probabilities of ten members: on the host, and on the device."""

import os
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.device import common
from benchmarks.device.measure import Job, Run, Side, compiled, repeated
from uncertainty.metrics import calibration, classification, evaluate_classification, information

BINS = 15
NAMES = ("nll", "accuracy", "ece", "entropy", "mutual_information")
TOLERANCE = 1e-3  # of float32 sums, and of confidences that round to the other side of an edge


def on_device(log_p: jax.Array, y: jax.Array, bins: int = BINS) -> jax.Array:
    """The metrics NAMES of log_p [M, B, K] and labels [B], in float32 on the device."""
    M, B, _ = log_p.shape
    p = jnp.exp(log_p)
    q = p.mean(0)
    nll = jnp.log(M) - jax.nn.logsumexp(log_p[:, jnp.arange(B), y], axis=0)
    confidence, right = q.max(-1), q.argmax(-1) == y
    index = jnp.minimum((confidence * bins).astype(jnp.int32), bins - 1)
    gaps = jax.ops.segment_sum(confidence - right, index, bins)
    total = -jax.scipy.special.xlogy(q, q).sum(-1)
    expected = -(p * log_p).sum(-1).mean(0)
    mutual = jnp.maximum(total - expected, 0)
    ece = jnp.abs(gaps).sum() / B
    return jnp.stack([nll.mean(), right.mean(), ece, total.mean(), mutual.mean()])


def on_host(log_p: np.ndarray, y: np.ndarray, bins: int = BINS) -> list[float]:
    """The same by `uncertainty/metrics`, one pass over memory each, in float64."""
    total, expected = information.entropies(log_p)
    mutual = np.maximum(total - expected, 0.0).mean()
    nll = float(np.mean(classification.nll(log_p, y)))
    accuracy = float(classification.accuracy(log_p, y))
    ece = float(calibration.ece(log_p, y, bins))
    return [nll, accuracy, ece, float(total.mean()), float(mutual)]


def agree(values: Any, reference: Any) -> None:
    """Raises ValueError where metrics differ."""
    for name, value, expected in zip(NAMES, values, reference, strict=True):
        if not abs(value - expected) <= TOLERANCE * max(abs(expected), 0.1):
            raise ValueError(f"refused: {name} is {value:.6g}, not {expected:.6g}")


def predictions(M: int, B: int, K: int) -> tuple[jax.Array, np.ndarray]:
    """Members' log-probabilities [M, B, K] on the device, and labels that they often predict."""

    @jax.jit
    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys = jax.random.split(key, 3)
        y = jax.random.randint(keys[0], (B,), 0, K)
        shared = jax.random.normal(keys[1], (B, K)) + (2 + np.log(K) / 2) * jax.nn.one_hot(y, K)

        def member(key: jax.Array) -> jax.Array:
            return jax.nn.log_softmax(shared + jax.random.normal(key, (B, K)))

        return jax.lax.map(member, jax.random.split(keys[2], M)), y

    log_p, y = draw(jax.random.key(0))
    return log_p, np.asarray(y)


def metrics(run: Run) -> Iterator[list[dict[str, Any]]]:
    """NLL, accuracy, ECE, entropy and mutual information against PyTorch on the device."""
    M, B, K = (4, 2_000, 50) if run.small else (10, 50_000, 1_000)
    job = Job(run, f"NLL, accuracy, ECE, entropies of {B:,} x {K:,}, {M} members")
    log_p, y = predictions(M, B, K)
    host = np.asarray(log_p)
    reference = on_host(host, y)
    job.values |= dict(zip(NAMES, reference, strict=True))

    def host_side(function: Any, from_device: bool = False) -> Side:
        def block(steps: int) -> float:
            fresh = [log_p + 0 for _ in range(steps)] if from_device else []  # JAX keeps copies
            jax.block_until_ready(fresh)
            began = time.perf_counter()
            for i in range(steps):
                function(np.asarray(fresh[i]) if from_device else host, y)
            return time.perf_counter() - began

        return Side(block)

    def device_side() -> Side:
        labels = jnp.asarray(y)
        program, about = compiled(on_device, log_p, labels)
        agree(np.asarray(program(log_p, labels)), reference)
        return Side(repeated(lambda: program(log_p, labels)), None, about)

    job.add("ours: uncertainty.metrics on the host", lambda: host_side(on_host))
    job.add("ours: with the copy from the device", lambda: host_side(on_host, True))
    job.add("ours: all metrics at once, host", lambda: host_side(evaluate_classification))
    job.add("the formulas in JAX on the device", device_side)
    file = os.path.join(run.folder, "log_p.npy")

    def torch_side(method: str) -> Side:
        labels = os.path.join(run.folder, "labels.npz")
        if not os.path.exists(file):
            np.save(file, host)
            np.savez(labels, y=y)
        request = dict(kind="metrics", log_p=file, bins=BINS, precision="float32")
        side = common.torch_side(run, job.title, method, labels, **request)
        agree(side.about["values"], reference)
        return side._replace(about={k: v for k, v in side.about.items() if k != "values"})

    job.add("PyTorch: on the device", lambda: torch_side("eager"))
    yield [job.time(run.left() / 2).record(_ratios(job))]
    job.add("PyTorch: on the device, compile", lambda: torch_side("compile"))
    yield [job.time(run.left()).record(_ratios(job))]


def _ratios(job: Job) -> dict[str, dict[str, float]]:
    ratios, name = job.against_torch(), "the formulas in JAX on the device"
    theirs = [v for side, v in job.seconds.items() if side.startswith("PyTorch")]
    if name in job.seconds and theirs:
        ratios[f"PyTorch's best / {name}"] = {
            key: min(v[key] for v in theirs) / job.seconds[name][key] for key in ("min", "median")
        }
    return ratios
