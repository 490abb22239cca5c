"""Programs of one TPU chip, judged by its compiler: no TPU is needed, and nothing is timed.

    python -m benchmarks.tpu moe|executors [--only S/32 sort] [--most 8] [--timeout 900] [--again]

`moe` is a layer of experts in bfloat16, forward and backward, with top-k routing, capacity factor
1.05 and the two losses: by both dispatches, and `dense`, the same feed-forward layer on the same
number of choices. `products` are those of the experts alone, on rows that are sorted by expert:
as a batch of E, by `jax.lax.ragged_dot`, and by the kernel `megablox`; both of the latter take any
number of rows for each expert, and so need no capacity.

`executors` are updates of P particles with Adam, in float32, beside that of one (`single`).

Each row is compiled in a process of its own, since a failed check of the compiler ends it, and is
written to `results/tpu_*.json` when it is done. Rows that are there already are not compiled again,
except, by --again, those that failed or were too slow; delete the file to start afresh.

What is shown: FLOPs and `bytes accessed` of XLA's analysis, which takes a loop for one of its
passes and counts memory on the chip and both ends of a copy; bytes of HBM, the compiler's estimate
of cycles, that of products, and how often gathers, scatters, sorts, copies and loops run
(`benchmarks/hlo.py`), for which it has no estimate; memory besides arguments; the program's size.
"""

import argparse
import functools
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import hlo, timing

TOPOLOGY = "v5e:2x2"  # the smallest; one of its chips is used
SIZES = {  # width, examples in a group, tokens of an example, groups
    "S/32": (512, 32, 50, 4),
    "B/16": (768, 8, 197, 4),
}
METHODS = ("dense", "sort", "einsum")
PRODUCTS = ("batch", "ragged_dot", "megablox")
EXECUTORS = ("vmap", "scan", "unroll")
MODELS: dict[str, tuple[dict[str, Any], tuple[int, ...], int]] = {  # backbone, images, batch size
    "MLP 784-200-200": (dict(name="mlp.MLP", widths=(200, 200)), (28, 28, 1), 128),
    "LeNet5": (dict(name="lenet.LeNet5"), (28, 28, 1), 128),
    "ViT 4 x 64": (
        dict(name="vit.ViT", variant="tiny", depth=4, width=64, mlp_dim=256),
        (28, 28, 1),
        64,
    ),
    "ViT 2 x 384": (
        dict(name="vit.ViT", variant="tiny", depth=2, width=384, num_heads=6, mlp_dim=1536),
        (32, 32, 3),
        128,
    ),
    "ResNet-20": (dict(name="resnet.ResNet", depth=20), (32, 32, 3), 128),
}
PARTICLES = (4, 10, 32)
FEW = {
    "ViT 2 x 384": 4,
    "ResNet-20": 4,
}  # particles at most, where a compilation takes many minutes
LONGEST = 10  # particles to unroll


def rows(name: str) -> Iterator[dict[str, Any]]:
    """What is compiled, in this order."""
    if name == "executors":
        for P in (1, *PARTICLES):
            for model in MODELS:
                for executor in EXECUTORS if P > 1 else ("unroll",):
                    if FEW.get(model, P) >= P and not (executor == "unroll" and P > LONGEST):
                        yield dict(program="update", model=model, P=P, executor=executor)
        return
    for size in SIZES:
        yield dict(program="layer", size=size, E=1, K=2, method="dense")
        for E in (8, 32, 128):
            for method in METHODS[1:]:
                yield dict(program="layer", size=size, E=E, K=2, method=method)
    for E in (8, 32):
        for method in PRODUCTS:
            yield dict(program="products", size="S/32", E=E, K=2, method=method)


def layer(size: str, E: int, K: int, method: str) -> tuple[Callable, tuple]:
    """A function to compile and the shapes of its arguments: gradients of a layer's output."""
    import jax
    import jax.numpy as jnp

    from uncertainty.layers.feed_forward import FeedForward
    from uncertainty.layers.moe.experts import MoE
    from uncertainty.layers.moe.routers import TopK

    D, N, T, G = SIZES[size]
    expert = functools.partial(FeedForward, mlp_dim=4 * D, dtype=jnp.bfloat16)
    times, made = K, expert()
    if method != "dense":
        router = functools.partial(TopK, k=K, group_size=N)
        times, made = 1, MoE(num_experts=E, feed_forward=expert, router=router, dispatch=method)
    x = jax.ShapeDtypeStruct((1, times * G * N, T, D), jnp.bfloat16)

    def loss(params: Any, x: Any, key: Any) -> Any:
        mutable = ["losses", "routing"]
        y, sown = made.apply(params, x, train=True, rngs=dict(noise=key), mutable=mutable)
        losses = jax.tree.leaves(sown.get("losses", {}))
        return jnp.mean(y.astype(jnp.float32) ** 2) + sum(map(jnp.mean, losses))

    key = jax.eval_shape(jax.random.key, 0)
    variables = jax.eval_shape(lambda key, x: made.init(key, x, train=False), key, x)
    return jax.grad(loss, (0, 1)), (dict(params=variables["params"]), x, key)


def products(size: str, E: int, K: int, method: str) -> tuple[Callable, tuple]:
    """Both products of the experts on K choices of each token, sorted by expert."""
    import jax
    import jax.numpy as jnp

    D, N, T, G = SIZES[size]
    rows = K * G * N * T

    def product(x: Any, kernel: Any, sizes: Any) -> Any:
        if method == "megablox":
            from jax.experimental.pallas.ops.tpu.megablox import gmm

            return gmm(x, kernel, sizes, preferred_element_type=x.dtype, tiling=(128, 512, 512))
        if method == "ragged_dot":
            return jax.lax.ragged_dot(x, kernel, sizes)
        return jnp.einsum("erd,edh->erh", x.reshape(E, -1, x.shape[1]), kernel).reshape(rows, -1)

    def loss(kernels: Any, x: Any, sizes: Any) -> Any:
        first, second = (kernel.astype(x.dtype) for kernel in kernels)
        y = product(jax.nn.gelu(product(x, first, sizes)), second, sizes)
        return jnp.mean(y.astype(jnp.float32) ** 2)

    kernels = tuple(jax.ShapeDtypeStruct((E, *s), jnp.float32) for s in ((D, 4 * D), (4 * D, D)))
    x = jax.ShapeDtypeStruct((rows, D), jnp.bfloat16)
    return jax.grad(loss, (0, 1)), (kernels, x, jax.ShapeDtypeStruct((E,), jnp.int32))


def update(model: str, P: int, executor: str) -> tuple[Callable, tuple]:
    """The update of P particles."""
    import jax
    import jax.numpy as jnp

    from uncertainty import build

    backbone, shape, B = MODELS[model]
    made = build.inference(
        dict(
            backbone=backbone,
            ensemble=dict(name="single"),
            head=dict(name="dense.Dense", outputs=10),
            likelihood=dict(name="softmax"),
            inference=dict(
                name="particles", size=P, executor=executor, direction=dict(name="independent")
            ),
            optimiser=dict(name="adam", learning_rate=1e-3),
            steps=100,
        ),
        num_examples=50_000,
    )
    state = jax.eval_shape(made.init, jax.random.key(0), jnp.zeros((1, *shape)))
    batch = dict(
        x=jax.ShapeDtypeStruct((B, *shape), jnp.float32), y=jax.ShapeDtypeStruct((B,), jnp.int32)
    )
    return made.update, (state, batch)


def compiled(program: str, **spec: Any) -> dict[str, Any]:
    """Compiles a row for one chip, in this process."""
    import jax
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from uncertainty import cpu

    devices = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY).devices
    chip = NamedSharding(Mesh(devices[:1], ("chip",)), PartitionSpec())
    began = time.perf_counter()
    with cpu.compiling_for("tpu"):
        fn, arguments = dict(layer=layer, products=products, update=update)[program](**spec)
        arguments = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=chip), arguments
        )
        donated = (0,) if program == "update" else ()
        traced = jax.jit(fn, donate_argnums=donated).trace(*arguments)
        result = traced.lower(lowering_platforms=("tpu",)).compile()
    analysis, memory = result.cost_analysis(), result.memory_analysis()
    return dict(
        flops=analysis["flops"],
        bytes_accessed=analysis["bytes accessed"],
        **hlo.costs(result.as_text()),
        temporary_bytes=memory.temp_size_in_bytes,
        program_bytes=memory.generated_code_size_in_bytes,
        seconds=round(time.perf_counter() - began, 1),
    )


def in_a_process(row: dict[str, Any], timeout: float) -> dict[str, Any]:
    """Compiles a row in a process that may end; its last line, or `error`."""
    environment = dict(
        JAX_PLATFORMS="cpu",
        TPU_SKIP_MDS_QUERY="1",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
        TF_CPP_MIN_LOG_LEVEL="3",
    )
    command = [sys.executable, "-m", "benchmarks.tpu", "row", "--row", json.dumps(row)]
    try:
        done = subprocess.run(
            command, env=os.environ | environment, timeout=timeout, capture_output=True, text=True
        )
    except subprocess.TimeoutExpired:
        return dict(error=f"not compiled after {timeout:g} s")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return dict(error=f"exit status {done.returncode}: {last[:300]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(path: pathlib.Path, name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows of the file, after those that it lacks were compiled."""
    record = json.loads(path.read_text()) if path.exists() else dict(rows=[])
    chosen = [row for row in rows(name) if _matches(row, arguments)]
    if not chosen:
        raise SystemExit(f"--only, --most: no row of {name!r} is left; words: {_words(name)}")
    for row in chosen:
        old = next((r for r in record["rows"] if row.items() <= r.items()), None)
        if old is not None and not (arguments.again and "error" in old):
            continue
        print(*row.values(), end=" ... ", flush=True)
        new = row | in_a_process(row, arguments.timeout)
        print(new.get("error", f"{new.get('seconds')} s"), flush=True)
        record["rows"] = [r for r in record["rows"] if r is not old] + [new]
        order = [*rows(name), {}]  # rows that are no longer among them come last
        record["rows"].sort(key=lambda r: [spec.items() <= r.items() for spec in order].index(True))
        compiler = ("libtpu",) if importlib.util.find_spec("libtpu") else ()
        record |= timing.where((*timing.PACKAGES, *compiler)) | dict(topology=TOPOLOGY)
        timing.write(path, record)
    return [r for r in record["rows"] if _matches(r, arguments)]


def _words(name: str) -> str:
    words = {v: None for row in rows(name) for v in row.values() if isinstance(v, str)}
    return ", ".join(words)


def _matches(row: dict[str, Any], arguments: argparse.Namespace) -> bool:
    if row.get("P", row.get("E", 0)) > arguments.most:
        return False
    values = [value for value in row.values() if isinstance(value, str)]
    return all(any(value.startswith(word) for value in values) for word in arguments.only)


def table(found: list[dict[str, Any]]) -> str:
    """A table in Markdown; ratios to the product of P and `single`, or to `dense` or `batch`."""
    base = {
        (r["program"], r.get("model") or (r["size"], r["program"] == "products" and r["E"])): r
        for r in found
        if r.get("P") == 1 or r.get("method") in ("dense", "batch")
    }
    lines = [
        "| program | GFLOP | GB accessed | MB of HBM | times | Mcycles | times | of products "
        "| MB temporary | MB of code | gathers, scatters, sorts | copies | loops |",
        "| --- |" + " ---: |" * 12,
    ]
    for r in found:
        named = [r["model"], f"P = {r['P']}", r["executor"]] if "model" in r else None
        named = named or [r["program"], r["size"], f"E = {r['E']}", r["method"]]
        if "error" in r:
            lines.append(f"| {', '.join(named)} | {r['error']} |" + " |" * 11)
            continue
        key = r.get("model") or (r["size"], r["program"] == "products" and r["E"])
        one, counts = base.get((r["program"], key)), r["counts"]

        def times(field: str, r: Any = r, one: Any = one) -> str:
            if one is None or "error" in one or not one[field]:
                return ""
            return f"{r[field] / one[field] / r.get('P', 1):.2f}"

        cells = [
            f"{r['flops'] / 1e9:.1f}",
            f"{r['bytes_accessed'] / 1e9:.2f}",
            f"{r['hbm_bytes'] / 1e6:.0f}",
            times("hbm_bytes"),
            f"{r['cycles'] / 1e6:.2f}",
            times("cycles"),
            f"{r['product_cycles'] / 1e6:.2f}",
            f"{r['temporary_bytes'] / 1e6:.0f}",
            f"{r['program_bytes'] / 1e6:.1f}",
            ", ".join(str(counts.get(k, 0)) for k in ("gather", "scatter", "sort")),
            str(counts.get("copy", 0)),
            str(counts.get("while", 0)),
        ]
        lines.append(f"| {', '.join(named)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=("moe", "executors", "row"))
    parser.add_argument(
        "--only", nargs="*", default=[], help="beginnings of words, all of them of a row"
    )
    parser.add_argument("--most", type=int, default=10**9, help="particles, or experts")
    parser.add_argument("--timeout", type=float, default=900, help="seconds of a row")
    parser.add_argument("--again", action="store_true", help="compile again what failed")
    parser.add_argument(
        "--output", type=pathlib.Path, help="JSON; in benchmarks/results by default"
    )
    parser.add_argument("--row", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if importlib.util.find_spec("libtpu") is None:
        raise SystemExit(
            "libtpu is not installed, and it has the compiler: pip install 'jax[tpu]', or libtpu "
            "alone, at the version that this extra names"
        )
    if arguments.name == "row":
        print(json.dumps(compiled(**arguments.row)))
        return
    path = arguments.output or timing.RESULTS / f"tpu_{arguments.name}.json"
    print(table(measure(path, arguments.name, arguments)))
    print(f"written: {path}")


if __name__ == "__main__":
    main()
