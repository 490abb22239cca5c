"""A program that runs and times SVGD and SGLD of other libraries on request.

    python svgd_opponents.py torch|blackjax|numpyro|blackjax-sgld FILE.npz

The file has the particles of an MLP, `dense0.kernel` [P, D, H] and so on up to `logits.bias`, the
standard deviation `prior` of their Gaussian prior, `rate` and `eps` of Adam, and batches
x [N, B, D] with labels y [N, B] (integers, classes) or [N, B, 1] (real numbers, noise 1). The log
density is log p(theta) - mean nll of a batch: the posterior of a single example.

A request is one line of JSON, {"threads", "bandwidth", "steps"}. The answer has the wall and CPU
seconds per step. With "memory", it has the peak in bytes of arguments, results and temporaries;
with "particles", a file name, the particles after that many steps from the start are written to the
file. "bandwidth" is h of exp(-|a - b|^2 / (2 h)), or null for the library's median heuristic. For
SGLD it is the temperature, or null for 1.

  torch          by hand, `svgd_torch.py`
  blackjax       blackjax.svgd with rbf_kernel and update_median_heuristic, optax.adam
  numpyro        numpyro.contrib.einstein.SVGD, which is SteinVI with a point-mass guide, RBFKernel,
                 optax.adam
  blackjax-sgld  blackjax.sgld, mapped over the chains
"""

import importlib.metadata
import itertools
import json
import sys
import time
from typing import Any

import numpy as np


def compiled_bytes(compiled: Any) -> int:
    """Bytes of arguments, results and temporaries of a compiled function."""
    m = compiled.memory_analysis()
    whole = m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes
    return whole - m.alias_size_in_bytes


class Jax:
    """A compiled step from (state, x, y) to the next state, and the state's particles."""

    def __init__(self, arrays: dict[str, np.ndarray], bandwidth: float | None):
        import jax
        import optax

        self.jax, self.h = jax, bandwidth
        self.scale, self.rate = float(arrays["prior"]), float(arrays["rate"])
        self.adam = optax.adam(self.rate, eps=float(arrays["eps"]))
        batches = list(zip(arrays["x"], arrays["y"], strict=True))
        self.batches = itertools.cycle(batches)
        names = sorted(name for name in arrays if name.endswith(".kernel"))  # logits are last
        self.layers = [name.removesuffix(".kernel") for name in names]
        start = {
            f"{layer}.{kind}": jax.numpy.asarray(arrays[f"{layer}.{kind}"])
            for layer in self.layers
            for kind in ("kernel", "bias")
        }
        self.state, step = self.make(start, *batches[0])
        step = jax.jit(step, donate_argnums=0)
        self.compiled = step.lower(self.state, *batches[0]).compile()

    def outputs(self, params: dict[str, Any], x: Any) -> Any:
        for i, layer in enumerate(self.layers):
            x = x @ params[f"{layer}.kernel"] + params[f"{layer}.bias"]
            x = self.jax.nn.relu(x) if i + 1 < len(self.layers) else x
        return x

    def log_density(self, params: dict[str, Any], x: Any, y: Any) -> Any:
        jnp, u = self.jax.numpy, self.outputs(params, x)
        if jnp.issubdtype(y.dtype, jnp.integer):
            terms = -jnp.take_along_axis(self.jax.nn.log_softmax(u), y[:, None], axis=1)
        else:
            terms = (u - y) ** 2 / 2
        prior = sum(jnp.sum(w**2) for w in params.values()) / (2 * self.scale**2)
        return -jnp.mean(terms) - prior

    def run(self, steps: int) -> None:
        for _ in range(steps):
            x, y = next(self.batches)
            self.state = self.compiled(self.state, x, y)
        self.jax.block_until_ready(self.state)

    def memory(self) -> int:
        return compiled_bytes(self.compiled)


class BlackJax(Jax):
    def make(self, start: dict[str, Any], *batch: Any) -> tuple[Any, Any]:
        import blackjax
        from blackjax.vi.svgd import rbf_kernel, update_median_heuristic

        svgd = blackjax.svgd(
            self.jax.grad(self.log_density),
            self.adam,
            rbf_kernel,
            update_median_heuristic if self.h is None else lambda state: state,
        )
        state = svgd.init(start, {"length_scale": self.jax.numpy.float32(2 * (self.h or 1.0))})
        return state, lambda state, x, y: svgd.step(state, x=x, y=y)

    def particles(self) -> dict[str, np.ndarray]:
        return self.state.particles


class NumPyro(Jax):
    def make(self, start: dict[str, Any], *batch: Any) -> tuple[Any, Any]:
        import numpyro
        from numpyro import distributions as dist
        from numpyro.contrib.einstein import SVGD, RBFKernel

        def model(x, y):
            params = {
                name: numpyro.sample(
                    name, dist.Normal(0, self.scale).expand(a.shape[1:]).to_event()
                )
                for name, a in start.items()
            }
            u = self.outputs(params, x)
            classes = self.jax.numpy.issubdtype(y.dtype, self.jax.numpy.integer)
            law = dist.Categorical(logits=u) if classes else dist.Normal(u, 1).to_event(1)
            with numpyro.handlers.scale(scale=1 / len(y)):
                numpyro.sample("y", law.to_event(1), obs=y)

        class Fixed(RBFKernel):
            def compute(kernel, *arguments):
                return lambda a, b: self.jax.numpy.exp(-((a - b) ** 2).sum() / (2 * self.h))

        P = len(next(iter(start.values())))
        optimiser = numpyro.optim.optax_to_numpyro(self.adam)
        kernel = (RBFKernel if self.h is None else Fixed)()
        svgd = SVGD(model, optimiser, kernel, num_stein_particles=P)
        state = svgd.init(self.jax.random.key(0), *batch)
        self.params = svgd.get_params
        own = {f"{name}_auto_loc": a for name, a in start.items()}
        assert set(own) == set(svgd.get_params(state))
        state = state._replace(optim_state=optimiser.init(own))
        return state, lambda state, x, y: svgd.update(state, x, y)[0]

    def particles(self) -> dict[str, np.ndarray]:
        params = self.params(self.state)
        return {name.removesuffix("_auto_loc"): a for name, a in params.items()}


class BlackJaxSgld(Jax):
    def make(self, start: dict[str, Any], *batch: Any) -> tuple[Any, Any]:
        import blackjax

        jax = self.jax
        sgld = blackjax.sgld(lambda params, batch: jax.grad(self.log_density)(params, *batch))
        T = 1.0 if self.h is None else self.h

        def step(state, x, y):
            keys, positions = state
            new = jax.vmap(lambda key: jax.random.split(key))(keys)
            move = jax.vmap(lambda key, p: sgld.step(key, p, (x, y), self.rate, T))
            return new[:, 0], move(new[:, 1], positions)

        P = len(next(iter(start.values())))
        return (jax.random.split(jax.random.key(1), P), start), step

    def particles(self) -> dict[str, np.ndarray]:
        return self.state[1]


JAX = {"blackjax": BlackJax, "numpyro": NumPyro, "blackjax-sgld": BlackJaxSgld}


def main(library: str, file: str) -> None:
    arrays, sides = dict(np.load(file)), {}
    package = library.split("-")[0]
    if library == "torch":
        import torch
        from svgd_torch import Torch as make
    else:
        make = JAX[library]
    for line in sys.stdin:
        request = json.loads(line)
        if library == "torch":
            torch.set_num_threads(request["threads"])
        h, out = request["bandwidth"], request.get("particles")
        if out or h not in sides:
            sides[h] = make(arrays, h)
        side = sides[h]
        wall, cpu = time.perf_counter(), time.process_time()
        side.run(request["steps"])
        seconds = [time.perf_counter() - wall, time.process_time() - cpu]
        if out:
            np.savez(out, **{name: np.asarray(a) for name, a in side.particles().items()})
            del sides[h]
        answer = dict(zip(("wall", "cpu"), (s / request["steps"] for s in seconds), strict=True))
        answer["version"] = importlib.metadata.version(package)
        if request.get("memory"):
            answer["memory"] = side.memory()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
