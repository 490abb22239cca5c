"""The cost of Gaussian process heads: training, prediction, the exact pass, the factor.

    python -m benchmarks.gp_heads training [--depth 28 --width 10 --batch 64] [--save]
    python -m benchmarks.gp_heads prediction [--save]
    python -m benchmarks.gp_heads exact_pass [--depth 16 --width 4] [--save]
    python -m benchmarks.gp_heads factor [--save]

`benchmarks.gp_libraries` compares with other libraries. All sides of a job run in one process on
the same arrays, compiled and warmed up before, taking turns; m = 1,024 random features. On shared
cores OPENBLAS_NUM_THREADS=1 is faster for Cholesky.

training    a step of `inference.particles` on a WideResNet, 100 classes, SGD with momentum, as in
            the train loop: the dense head without and with spectral normalisation of the backbone,
            and with it SNGP and HetSNGP (6 factors, 100 draws). The data are noise.
prediction  log-probabilities of 10,000 examples, 1,000 classes, from 1,024 features: dense head,
            last-layer Laplace and SNGP with mean-field softmax, SNGP after a projection to 128.
exact_pass  the stage 'laplace' over some batches, from zero to the factor, against the forward pass
            of the same network over the same batches.
factor      variances of B examples by a product with the cached factor L^-1 in 4 blocks or whole,
            by a product with the cached inverse, and by a triangular solve for every batch; and the
            time to compute the factor, against that of an inverse.

The floors, in multiply-adds (MAC).

training: WRN-28-10 takes 5.25 GMAC per example forward and three times that in all, 15.7. A power
iteration with its derivative is four convolutions of one image, 21 GMAC per step for any batch
size: 4 / 3B of a step, 2.1 % for 64 examples, 4.2 % for 32; in addition the 36 million weights are
read and written some ten times more, 1.5 GB, 0.1 s at 15 GB/s. The SNGP head takes 640 x 1,024 +
1,024 x 100 = 0.8 MMAC forward, 0.02 % of the network; HetSNGP 640 x 700 more, and 100 x 100 draws
per example.

prediction: per example 1.02 MMAC for the logits, 5/8 of 1.05 for the variance by four blocks of the
triangle, 1.05 for the random features. So 1.64 times the dense head's products for Laplace, 1.90
for SNGP after a projection to 128, 2.67 without; besides products each side has the softmax of 1e7
logits, and SNGP 1e7 cosines. Memory: features, random features and logits, 41 MB each; no B x B
matrix (400 MB here). The factor's partial products are B x 256.

exact_pass: m^2 = 1.05 MMAC per example: 0.3 % of WRN-16-4 forward (0.39 GMAC), 0.02 % of WRN-28-10;
and once a Cholesky factorisation and a triangular inverse, m^3 / 3 each.

factor: 5/8 m^2 for four blocks, m^2 for the whole factor or the inverse, m^2 / 2 for a solve, which
is sequential.
"""

import argparse
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import timing
from benchmarks.timing import block, over, show
from uncertainty.backbones.wide_resnet import WideResNet
from uncertainty.ensembles.single import single
from uncertainty.heads.dense import Dense
from uncertainty.heads.heteroscedastic import Heteroscedastic
from uncertainty.heads.laplace import Laplace
from uncertainty.heads.sngp import Sngp
from uncertainty.inference import executors
from uncertainty.inference.particles import particles
from uncertainty.layers import posterior as posterior_lib
from uncertainty.layers import spectral_norm
from uncertainty.likelihoods import softmax
from uncertainty.model import from_network
from uncertainty.stages.laplace import laplace as laplace_stage

FEATURES = 1024


def training(arguments: argparse.Namespace) -> dict[str, Any]:
    K, B = 100, arguments.batch
    plain = WideResNet(depth=arguments.depth, width_multiplier=arguments.width)
    bounded = plain.clone(conv=functools.partial(spectral_norm.Conv, bound=6.0))
    sngp = functools.partial(Sngp, normalise=False)
    networks = {
        "dense": (plain, Dense(K)),
        "dense, spectral norm": (bounded, Dense(K)),
        "SNGP": (bounded, sngp(K)),
        "HetSNGP": (bounded, Heteroscedastic(K, mean=sngp)),
    }
    rng = np.random.default_rng(0)
    batch = jax.device_put(
        {
            "x": rng.normal(size=(B, 32, 32, 3)).astype(np.float32),
            "y": rng.integers(K, size=B).astype(np.int32),
        }
    )
    sides, compiled = {}, {}
    for name, network in networks.items():
        inference = particles(
            from_network(single(*network), softmax(samples=100)),
            optax.sgd(0.01, momentum=0.9, nesterov=True),
        )
        state = inference.init(jax.random.key(0), batch["x"])
        lowered = jax.jit(inference.update, donate_argnums=0).lower(state, batch)
        programs: list = []
        compiled[name], _ = timing.clock(
            lambda programs=programs, lowered=lowered: programs.append(lowered.compile())
        )
        current = {"state": state}

        def step(current=current, update=programs[0]) -> Any:
            current["state"], metrics = update(current["state"], batch)
            return metrics["finite"]

        assert np.all(step()), name
        sides[name] = block(step)
    seconds = timing.take_turns(sides, arguments.rounds)
    targets = {"SNGP": 1.05, "HetSNGP": 1.15}
    return dict(
        job=f"training step, WRN-{arguments.depth}-{arguments.width}, batch {B}",
        seconds=seconds,
        ratios=over(seconds, "dense"),
        ratios_of_the_head=over(
            {k: v for k, v in seconds.items() if k != "dense"}, "dense, spectral norm"
        ),
        targets=targets,
        compile_seconds=compiled,
    )


def prediction(arguments: argparse.Namespace) -> dict[str, Any]:
    B, D, K = 10_000, FEATURES, 1_000
    rng = np.random.default_rng(0)
    h = jnp.asarray(rng.normal(size=(1, B, D)), jnp.float32)
    heads = {
        "dense": Dense(K),
        "Laplace": Laplace(K, curvature="gaussian"),
        "SNGP, projection to 128": Sngp(K, projection=128, normalise=False),
        "SNGP": Sngp(K, normalise=False),
    }
    likelihood = softmax(mean_field=np.pi / 8)
    key = jax.random.key(0)
    sides, compiled, memory = {}, {}, {}
    for name, head in heads.items():
        variables = fitted(head, h[:, :2000])

        def log_probs(variables, h, head=head):
            return likelihood.log_probs(head.apply(variables, h, train=False), key)

        def temporary(factor, log_probs=log_probs, variables=variables):
            shape = jax.ShapeDtypeStruct((1, factor * B, D), h.dtype)
            program = jax.jit(log_probs).lower(variables, shape).compile()
            return program.memory_analysis().temp_size_in_bytes / 1e6

        memory[name] = {f"{n * B:,}": temporary(n) for n in (1, 4)}
        predict = jax.jit(log_probs)
        compiled[name], _ = block(lambda p=predict, v=variables: p(v, h))()
        sides[name] = block(lambda p=predict, v=variables: p(v, h))
        alone = jax.jit(functools.partial(head.apply, train=False))
        sides[f"{name}: latent alone"] = block(lambda f=alone, v=variables: f(v, h))
        latent = head.apply(variables, h[:, :100], train=False)
        assert (latent.variance is None) == (name == "dense")
    timing.take_turns(sides, 1)  # warm up
    seconds = timing.take_turns(sides, arguments.rounds)
    alone = {k.split(":")[0]: v for k, v in seconds.items() if k.endswith("alone")}
    whole = {k: v for k, v in seconds.items() if not k.endswith("alone")}
    return dict(
        job=f"log-probabilities of {B:,} examples, {D:,} features, {K:,} classes",
        seconds=seconds,
        ratios=over(whole, "dense"),
        ratios_of_the_latent_alone=over(alone, "dense"),
        targets=dict.fromkeys(list(heads)[1:], 2.0),
        temporary_megabytes=memory,
        compile_seconds=compiled,
    )


def fitted(head: Any, h: jax.Array) -> Any:
    """Variables of a head, with its posterior, if it has one, fitted to the features h."""
    variables = dict(head.init({"params": jax.random.key(1)}, h, train=False))
    if isinstance(head, Dense):
        return variables
    for collection in ("moments", "precision"):
        _, changed = jax.jit(functools.partial(head.apply, train=False, mutable=[collection]))(
            variables, h
        )
        variables |= changed
    del variables["moments"]
    return variables


def exact_pass(arguments: argparse.Namespace) -> dict[str, Any]:
    B, batches = arguments.batch, arguments.batches
    backbone = WideResNet(
        depth=arguments.depth,
        width_multiplier=arguments.width,
        conv=functools.partial(spectral_norm.Conv, bound=6.0),
    )
    model = from_network(single(backbone, Sngp(100, normalise=False)), softmax())
    inference = particles(model, optax.sgd(0.1))
    stage = laplace_stage(model, executors.mapping("auto"))
    rng = np.random.default_rng(0)
    x = [jnp.asarray(rng.normal(size=(B, 32, 32, 3)), jnp.float32) for _ in range(batches)]
    state = inference.init(jax.random.key(0), x[0])
    predict, begin, finish = (jax.jit(f) for f in (inference.predict, stage.begin, stage.finish))
    update = jax.jit(stage.update, donate_argnums=1)

    def forward() -> Any:
        return [predict(state, a) for a in x]

    def fit() -> Any:
        same, moments = state, begin(state, x[0][:1])
        for a in x:
            same, moments, _ = update(same, moments, {"x": a})
        return finish(same, moments, x[0][:1])

    sides = {"forward epoch": block(forward), "exact pass": block(fit)}
    compiled = {name: side()[0] for name, side in sides.items()}
    done = fit()
    same, total = state, begin(state, x[0][:1])
    for a in x:
        same, total, _ = update(same, total, {"x": a})
    sides["its end: the factor"] = block(lambda: finish(same, total, x[0][:1]))
    factor = np.asarray(done.collections["precision"]["head"]["posterior"]["factor"][0], float)
    moments = np.asarray(total["moments"]["head"]["posterior"]["sum"][0], float)
    identity = factor @ (np.eye(FEATURES) + moments) @ factor.T
    np.testing.assert_allclose(identity, np.eye(FEATURES), atol=1e-3)
    timing.take_turns(sides, 1)  # warm up
    seconds = timing.take_turns(sides, arguments.rounds)
    return dict(
        job=f"{B * batches:,} examples, WRN-{arguments.depth}-{arguments.width}, batch {B}",
        seconds=seconds,
        ratios=over({k: v for k, v in seconds.items() if "factor" not in k}, "forward epoch"),
        targets={"exact pass": 1.1},
        first_call_seconds=compiled,
    )


def factor(arguments: argparse.Namespace) -> dict[str, Any]:
    m = FEATURES
    rng = np.random.default_rng(0)
    phi = np.sqrt(2 / m) * np.cos(rng.normal(size=(1, 10_000, m)))
    moments = jnp.asarray(phi[0].T @ phi[0], jnp.float32)
    phi = jnp.asarray(phi, jnp.float32)
    F = jax.jit(posterior_lib.inverse_factor)(moments)
    L = jnp.linalg.cholesky(jnp.eye(m) + moments)
    inverse = F.T @ F

    def whole(phi, F):
        return jnp.sum((phi @ F.T) ** 2, axis=-1, keepdims=True)

    def by_inverse(phi, inverse):
        return jnp.sum(phi * (phi @ inverse), axis=-1, keepdims=True)

    def by_solve(phi, L):
        solved = jax.lax.linalg.triangular_solve(L, phi[0].T, left_side=True, lower=True)
        return jnp.sum(solved**2, axis=0)[None, :, None]

    def numpy_inverse(moments):
        return jnp.linalg.inv(jnp.eye(m) + moments)

    ways = {
        "factor in 4 blocks": (posterior_lib.quadratic, F),
        "factor": (whole, F),
        "inverse": (by_inverse, inverse),
        "triangular solve": (by_solve, L),
    }
    sides = {}
    for B in (128, 500, 10_000):
        some = phi[:, :B]
        exact = np.linalg.norm(np.asarray(F, float) @ np.asarray(some[0], float).T, axis=0) ** 2
        for name, (fn, matrix) in ways.items():
            jitted = jax.jit(fn)
            variance = np.asarray(jitted(some, matrix))[0, :, 0]
            np.testing.assert_allclose(variance, exact, rtol=1e-4, err_msg=name)
            repeats = max(2_000 // B, 1)

            def run(f=jitted, some=some, matrix=matrix, repeats=repeats):
                return [f(some, matrix) for _ in range(repeats)]

            sides[f"{B:,}: {name}"] = block(run, repeats)
    for name, fn in {"L^-1": posterior_lib.inverse_factor, "jnp.linalg.inv": numpy_inverse}.items():
        from_moments = jax.jit(fn)
        sides[f"from P: {name}"] = block(lambda f=from_moments: f(moments))
    timing.take_turns(sides, 1)  # warm up
    seconds = timing.take_turns(sides, arguments.rounds)
    groups = {k.split(":")[0] for k in seconds if not k.startswith("from")}
    ratios = {}
    for B in groups:
        own = {k: v for k, v in seconds.items() if k.startswith(f"{B}:")}
        ratios |= over(own, f"{B}: factor in 4 blocks")
    return dict(job=f"variance with {m:,} features", seconds=seconds, ratios=ratios, targets={})


JOBS = {f.__name__: f for f in (training, prediction, exact_pass, factor)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("job", choices=JOBS)
    for name, value in dict(depth=28, width=10, batch=64, batches=8, rounds=5).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/*.json")
    arguments = parser.parse_args()
    record = JOBS[arguments.job](arguments)
    record |= dict(rounds=arguments.rounds, **timing.where())
    show(record)
    for key in ("ratios_of_the_head", "ratios_of_the_latent_alone", "temporary_megabytes"):
        if key in record:
            print(key, record[key])
    if arguments.save:
        name = f"gp_heads_{arguments.job}"
        if arguments.job in ("training", "exact_pass"):
            name += f"_wrn_{arguments.depth}_{arguments.width}_{arguments.batch}"
        print(f"written: {timing.save(name, record)}")


if __name__ == "__main__":
    main()
