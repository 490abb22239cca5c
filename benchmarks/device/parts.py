"""The parts. Each yields records of its jobs: what follows a record only adds to it.

A part that is cut off keeps the last record that it yielded, so what is slow to compile comes last.
"""

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.device import common, evaluation, training
from benchmarks.device.common import COMPARED, add_torch, arrays, batches, config, updates
from benchmarks.device.measure import Job, Run, Side, compiled, products, repeated
from benchmarks.moe import Side as Layer
from uncertainty import build, predictive
from uncertainty.layers.feed_forward import FeedForward
from uncertainty.layers.moe.experts import MoE
from uncertainty.layers.moe.routers import TopK

Records = Iterator[list[dict[str, Any]]]


def saved(run: Run, name: str, **values: np.ndarray) -> str:
    file = os.path.join(run.folder, f"{name}.npz")
    np.savez(file, **values)
    return file


def _ours(job: Job, sections: Any, data: Any, name: str, **options: Any) -> dict[str, np.ndarray]:
    """Adds our side, and returns its initial arrays, {} if it failed."""
    initial: dict[str, np.ndarray] = {}
    precision = options.get("precision", "tf32")

    def make() -> Side:
        side, params = updates(sections, data, **options)
        initial.update(params)
        return side

    job.add(name, make, precision)
    return initial


def ensembles(name: str, run: Run) -> Records:
    """A deep ensemble, P = 10, batch 128: three executors against PyTorch."""
    P, B = (2, 16) if run.small else (10, 128)
    backbone, shape, theirs = common.network(name, run.small)
    job = Job(run, f"a step of {common.label(name, run.small)}, P = {P}, batch {B}")
    data, image = batches(shape, B), len(shape) > 1
    first = _ours(job, config(backbone, P, executor="vmap"), data, "ours: vmap")
    first = _ours(job, config(backbone, P, executor="scan"), data, "ours: scan") or first
    methods = common.torch_methods(image)
    quick = [m for m in methods if "compile" not in m[0]]
    request: dict[str, Any] = dict(kind="ensemble", file=saved(run, "start", **data, **first))
    request |= theirs
    add_torch(job, quick, **request)
    yield [job.time(run.left() / 8).record(job.against_torch())]

    _ours(job, config(backbone, P, executor="vmap"), data, "ours: vmap, 4 steps a call",
          steps_a_call=4)  # fmt: skip
    add_torch(job, [m for m in methods if m not in quick], **request)
    yield [job.time(run.left() / 4).record(job.against_torch())]

    # Its code grows with P: about P times the scan's time to compile
    one = job.sides.get("ours: scan")
    expected = P * one.about["compile_seconds"] if one else 0.0
    if expected > run.left() and not run.small:
        job.missing["ours: unroll"] = f"compiling would take up to {expected:.0f} s"
    else:
        _ours(job, config(backbone, P, executor="unroll"), data, "ours: unroll")
    yield [job.time(run.left()).record(job.against_torch())]


def svgd(run: Run) -> Records:
    """SVGD, P = 20, MLP 784-100-10 of 79,510 parameters, against PyTorch by hand."""
    P, B, prior = *((4, 16) if run.small else (20, 128)), 10.0
    job = Job(run, f"a step of SVGD, MLP of 79,510 parameters, P = {P}, batch {B}")
    data = batches((784,), B)
    posterior = dict(name="gaussian", scale=prior)
    sections = functools.partial(config, dict(name="mlp.MLP", widths=(100,)), P, prior=posterior)
    # float32: with TF32 the distances between particles, small differences, are rounded
    first = _ours(job, sections(direction="svgd"), data, "ours: SVGD", precision="float32")
    request: dict[str, Any] = dict(kind="svgd", prior=prior, precision="float32")
    request |= dict(file=saved(run, "start", **data, **first))
    add_torch(job, [("SVGD", {}), ("SVGD, CUDA graph", {})], **request)
    yield [job.time(run.left() / 4).record(job.against_torch())]

    _ours(job, sections(direction="svgd"), data, "ours: SVGD, 4 steps a call",
          precision="float32", steps_a_call=4)  # fmt: skip
    _ours(job, sections(), data, "a deep ensemble: ours", precision="float32", compare=False)
    slow = [
        ("SVGD, compile", {}),
        ("SVGD, compile, CUDA graph", dict(like="SVGD, compile")),
    ]
    add_torch(job, slow, **request)
    job.time(run.left())
    alone = job.over("a deep ensemble: ours")
    chosen = {k: v for k, v in alone.items() if k.startswith("ours: SVGD /")}
    yield [job.record(job.against_torch() | chosen)]


def experts(run: Run) -> Records:
    """A V-MoE layer, forward and backward, against the dense layer on as many tokens."""
    D, G, S, K = (32, 2, 64, 2) if run.small else (512, 8, 4096, 2)
    rng, precision = np.random.default_rng(0), "tf32"
    x = jnp.asarray(rng.normal(size=(1, G, S, D)), jnp.float32)
    tokens = jnp.asarray(rng.normal(size=(1, G, K * S, D)), jnp.float32)
    job = Job(run, f"a layer of experts, {G} groups of {S:,} tokens of {D}, K = {K}")

    def side(layer: Any, x: Any) -> tuple[Side, Layer]:
        with products(precision):
            made = Layer(layer, x)
        memory = made.compiled.memory_analysis()
        size = memory.temp_size_in_bytes + memory.argument_size_in_bytes
        about = dict(
            compile_seconds=made.compile_seconds,
            megabytes=(size + memory.output_size_in_bytes) / 1e6,
        )
        block = repeated(made)
        block(1)
        return Side(block, None, about), made

    job.add("dense", lambda: side(FeedForward(4 * D), tokens)[0])
    results: dict[int, Any] = {}

    def routed(E: int, dispatch: str) -> Side:
        """Raises ValueError where outputs or gradients of the two dispatches differ."""
        layer = MoE(
            num_experts=E,
            feed_forward=functools.partial(FeedForward, mlp_dim=4 * D),
            router=functools.partial(TopK, k=K, group_size=1),
            dispatch=dispatch,
        )
        made, program = side(layer, x)
        result = jax.tree.map(np.asarray, program())
        for a, b in zip(
            *map(jax.tree.leaves, (result, results.setdefault(E, result))), strict=True
        ):
            apart = float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))
            if not apart <= 1e-2:
                raise ValueError(f"refused: differs from the other dispatch by {apart:.2g}")
        return made

    for E in (8, 32):
        for dispatch in ("sort", "einsum"):
            job.add(f"{dispatch}, E = {E}", functools.partial(routed, E, dispatch))
        yield [job.time(run.left() / (4 if E == 8 else 1)).record(job.over("dense"))]


def batch_ensemble(run: Run) -> Records:
    """BatchEnsemble of 4 against four networks by themselves."""
    M, B = 4, 16 if run.small else 128
    fast = dict(name="batch_ensemble", size=M, fast_weights=dict(name="batch_ensemble.gaussian"))
    jobs: list[dict[str, Any]] = []
    for i, name in enumerate(("MLP 784-200-200-10", "ResNet-20")):
        backbone, shape, _ = common.network(name, run.small)
        job, data = (
            Job(run, f"a step of {M} members, {common.label(name, run.small)}, batch {B}"),
            batches(shape, B),
        )
        for executor in ("vmap", "scan"):
            sections = config(backbone, M, executor=executor)
            _ours(job, sections, data, f"{M} networks, {executor}")
        _ours(job, config(backbone, ensemble=fast), data, "BatchEnsemble", compare=False)
        bases = [side for side in job.sides if side != "BatchEnsemble"]
        job.time(run.left() / (4 - 3 * i))
        jobs = [*jobs, job.record(job.over(*bases))]
        yield jobs


def dropout(run: Run) -> Records:
    """MC dropout, 30 masks at prediction, against 30 forward passes in PyTorch."""
    S, B, rate = *((30, 32) if run.small else (30, 1000)), 0.1
    jobs: list[dict[str, Any]] = []
    for i, name in enumerate(("MLP 784-200-200-10", "ResNet-20")):
        backbone, shape, theirs = common.network(name, run.small)
        job = Job(
            run,
            f"prediction of {B} examples with {S} dropout masks, {common.label(name, run.small)}",
        )
        x = batches(shape, B)["x"][0]
        mc = dict(name="mc_dropout", size=S, rate=rate)
        made = build.inference(config(backbone, ensemble=mc), num_examples=1)
        state = made.init(jax.random.key(0), x[:2])
        seen: dict[str, Any] = {}

        def members(state: Any, x: Any, made: Any = made) -> Any:
            return jax.nn.log_softmax(made.predict(state, x).mean)

        def ours(x: Any = x, state: Any = state, seen: Any = seen, members: Any = members) -> Side:
            with products("tf32"):
                mean = lambda state, x: jnp.exp(predictive.mixture(members(state, x)))  # noqa: E731
                program, about = compiled(mean, state, x)
                p = np.exp(np.asarray(jax.jit(members)(state, x)))
            seen.update(mean=p.mean(0), variance=p.var(0, ddof=1))
            ready = jax.device_put(x)
            block = repeated(lambda: program(state, ready))
            block(1)
            return Side(block, None, about)

        job.add("ours", ours)
        initial = arrays(state.params) | {
            f"{k}": a for k, a in arrays(state.collections.get("batch_stats", {})).items()
        }
        file = saved(run, f"dropout{i}", x=x, **initial)
        last = ", channels last" if len(shape) > 1 else ""
        for method in (f"passes{last}", f"copies{last}", f"passes{last}, CUDA graph"):
            out = os.path.join(run.folder, "probabilities.npz")
            request: dict[str, Any] = dict(kind="dropout", masks=S, rate=rate, out=out, file=file)

            def theirs_(method: str = method, job: Job = job, seen: Any = seen,
                        request: Any = request | theirs) -> Side:  # fmt: skip
                side = common.torch_side(run, job.title, method, **request)
                with np.load(request["out"]) as file:
                    apart = standard_errors(seen, file, S)
                if not 0.7 < apart < 1.4:
                    raise ValueError(f"refused: means differ by {apart:.2f} standard errors (rms)")
                return side._replace(about={**side.about, "standard_errors": apart})

            job.add(f"PyTorch: {method}", theirs_)
        job.time(run.left() / (4 - 3 * i))
        jobs = [*jobs, job.record(job.against_torch())]
        yield jobs


def standard_errors(a: Any, b: Any, S: int) -> float:
    """Root mean square of the differences of two means over S draws, in standard errors."""
    error = np.sqrt((np.asarray(a["variance"]) + np.asarray(b["variance"])) / S)
    z = (np.asarray(a["mean"]) - np.asarray(b["mean"])) / np.maximum(error, 1e-12)
    return float(np.sqrt(np.mean(z**2)))


def precision(run: Run) -> Records:
    """A step with products in float32 and TF32, and with a bfloat16 backbone."""
    jobs: list[dict[str, Any]] = []
    for i, (name, P) in enumerate((("MLP 784-200-200-10", 10), ("ResNet-20", 4))):
        P, B = (2, 16) if run.small else (P, 128)
        backbone, shape, theirs = common.network(name, run.small)
        job, data = (
            Job(run, f"a step of {common.label(name, run.small)}, P = {P}, batch {B}"),
            batches(shape, B),
        )
        first: dict[str, np.ndarray] = {}
        for kind in ("float32", "tf32", "bfloat16"):
            chosen = backbone | (dict(dtype="bfloat16") if kind == "bfloat16" else {})
            sections = config(chosen, P)
            first = _ours(job, sections, data, f"ours: {kind}", precision=kind) or first
        file = saved(run, f"precision{i}", **data, **first)
        methods = ["loop", "loop, CUDA graph"]
        for kind in ("float32", "tf32", "bfloat16"):
            for method in methods:
                last = ", channels last" if len(shape) > 1 else ""
                make = functools.partial(
                    common.torch_side, run, f"{job.title}, {kind}", method + last, file=file,
                    kind="ensemble", precision=kind, compare=COMPARED, **theirs,
                )  # fmt: skip
                job.add(f"PyTorch: {kind}, {method}{last}", make, kind)
        job.time(run.left() / (4 - 3 * i))
        jobs = [*jobs, job.record(by_precision(job))]
        yield jobs


def by_precision(job: Job) -> dict[str, dict[str, float]]:
    """PyTorch's best of the same precision over ours, and ours over ours with float32."""
    ratios = {}
    for kind in ("float32", "tf32", "bfloat16"):
        ours = job.seconds.get(f"ours: {kind}")
        theirs = [v for k, v in job.seconds.items() if k.startswith(f"PyTorch: {kind},")]
        base = job.seconds.get("ours: float32")
        if ours and theirs:
            ratios[f"PyTorch's best / ours, {kind}"] = {
                key: min(v[key] for v in theirs) / ours[key] for key in ("min", "median")
            }
        if ours and base and kind != "float32":
            ratios[f"ours, {kind} / float32"] = {k: ours[k] / base[k] for k in ("min", "median")}
    return ratios


PARTS: dict[str, Callable[[Run], Records]] = {
    "mlp": functools.partial(ensembles, "MLP 784-200-200-10"),
    "resnet": functools.partial(ensembles, "ResNet-20"),
    "svgd": svgd,
    "training": training.training,
    "experts": experts,
    "batch_ensemble": batch_ensemble,
    "metrics": evaluation.metrics,
    "dropout": dropout,
    "lenet": functools.partial(ensembles, "LeNet5"),
    "precision": precision,
}
