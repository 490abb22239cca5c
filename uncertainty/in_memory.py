"""Training, stages and predictions for arrays in memory, without a config or files.

    ensemble = particles(model, optax.adam(1e-3), size=5)
    state = fit(ensemble, dict(x=x, y=y), steps=1000)
    predicted = predict(model, ensemble, state, x_test)

The programs do the same with checkpoints, resuming, several devices, and data that do not fit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from uncertainty.distributions import Classes, Gaussians
from uncertainty.rules import paths
from uncertainty.types import Inference, Metrics, Model, Stage, State

Data = Mapping[str, ArrayLike]  # x [N, ...], y [N] or [N, K], and further entries [N, ...]
Watch = Callable[[int, Metrics], None]  # (step, metrics of the step)


def fit(
    inference: Inference,
    data: Data,
    *,
    steps: int,
    batch_size: int = 128,
    seed: int = 0,
    state: State | None = None,
    watch: Watch | None = None,
) -> State:
    """The state after `steps` updates on shuffled batches.

    Each epoch has an order of its own, a function of the seed; the examples that do not fill its
    last batch are left out.

    >>> import optax, flax.linen as nn
    >>> from uncertainty.inference.particles import particles
    >>> from uncertainty.likelihoods import gaussian
    >>> from uncertainty.own import from_module
    >>> model = from_module(nn.Dense(1), gaussian())
    >>> x = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
    >>> line = particles(model, optax.adam(0.1))
    >>> state = fit(line, dict(x=x, y=3 * x), steps=200)
    >>> predict(model, line, state, x[:1]).mean.round(2)
    array([[-3.]])

    Args:
      inference: of `particles`, whose particles share the batches.
      data: x [N, ...]; y, class labels [N] as integers (or bools, for classes 0 and 1) or targets
        [N, K] as floats; and whatever else the objective reads, [N, ...].
      steps: updates.
      batch_size: at most N are taken.
      seed: of the parameters, unless there is a state, and of the order.
      state: to go on from; by default `inference.init`.
      watch: called after each step; it waits for the step.

    Raises:
      ValueError: arrays that differ in length, are empty or not finite; labels that are negative,
        not below K or one-hot; or a module that returns probabilities in place of logits.
      FloatingPointError: a loss or gradient that is not finite; the message names the particle.
    """
    if inference.own_examples:
        raise ValueError("own_examples: particles of `fit` share the batches")
    if steps < 0:
        raise ValueError(f"steps: {steps}; at least 0")
    arrays = checked(data)
    if state is None:
        state = inference.init(jax.random.key(seed), jnp.asarray(arrays["x"][:1]))
        state = jax.tree.map(jnp.copy, state)
    else:
        state = jax.tree.map(jnp.copy, state)  # whose buffers are donated below
    _check_latents(inference, state, arrays)
    update = jax.jit(inference.update, donate_argnums=0)
    finite = []
    for step, batch in zip(range(steps), shuffled(arrays, batch_size, seed), strict=False):
        state, metrics = update(state, batch)
        finite.append(metrics["finite"])
        if watch is not None:
            watch(step, jax.device_get(metrics))
        if len(finite) == 100 or step == steps - 1:
            _check_finite(finite, step)
            finite.clear()
    return state


def run_stage(
    stage: Stage, state: State, data: Data, *, batch_size: int = 128, seed: int = 1
) -> State:
    """The state after a stage, such as `laplace(model)` or `swag(...)`.

    A stage with passes gets each example once, in order unless it asks for a random one; one with
    steps gets shuffled batches.

    Args:
      stage: of `uncertainty.stages`.
      state: after training.
      data: see `fit`; the training data, unless the stage is to have others (`Stage.data`).
      batch_size, seed: see `fit`.

    Raises:
      ValueError: see `fit`, and the stage; or data of another size than the stage was made for.
      FloatingPointError: a step that is not finite.
    """
    arrays = checked(data)
    if stage.num_examples not in (None, len(arrays["x"])):
        raise ValueError(
            f"data: {len(arrays['x'])} examples, but the stage was made for {stage.num_examples} "
            "(num_validation of `select`)"
        )
    x = jnp.asarray(arrays["x"][:1])
    state = state.replace(opt_state=())
    carry = jax.jit(stage.begin)(state, x)
    batches = shuffled(arrays, batch_size, seed)
    if stage.shuffled:
        order = np.random.default_rng(seed).permutation(len(arrays["x"]))
        arrays = {key: array[order] for key, array in arrays.items()}
    if stage.passes:
        batches = (batch for _ in range(stage.passes) for batch in in_order(arrays, batch_size))
    update, finite = jax.jit(stage.update), []
    for step, batch in enumerate(batches):
        if stage.steps and step == stage.steps:
            break
        state, carry, metrics = update(state, carry, batch)
        finite += [metrics["finite"]] if "finite" in metrics else []
        if len(finite) == 100:
            _check_finite(finite, step)
            finite.clear()
    if finite:
        _check_finite(finite, step)
    return jax.jit(stage.finish)(state, carry, x)


def predict(
    model: Model,
    inference: Inference,
    state: State,
    x: ArrayLike,
    *,
    batch_size: int = 512,
    seed: int = 0,
) -> Classes | Gaussians:
    """What all members predict for x [B, ...], on the host.

    Args:
      model, inference: that the state is of.
      state: a trained one.
      x: as in training.
      batch_size: examples at a time; the last batch is padded.
      seed: of draws, where a likelihood integrates the latents by them.

    Raises:
      ValueError: x is empty or not finite.
    """
    x = _checked_x(x)
    size, likelihood = min(batch_size, len(x)), model.likelihood

    @jax.jit
    def one(state: State, x: jax.Array, mask: jax.Array) -> Any:
        # Only where examples depend on one another is padding more than rows without use.
        latent = inference.predict(state, x, mask if model.batch_dependent else None)
        if likelihood.log_probs is None:
            assert likelihood.moments is not None
            return likelihood.moments(latent)
        return (likelihood.log_probs(latent, jax.random.key(seed)),)

    parts = []
    for start in range(0, len(x), size):
        part = x[start : start + size]
        rows = np.minimum(np.arange(size), len(part) - 1)
        out = jax.device_get(one(state, part[rows], np.arange(size) < len(part)))
        parts.append([a[:, : len(part)] for a in out])
    joined = [np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True)]
    if likelihood.log_probs is None:
        return Gaussians(joined[0], joined[1])
    (log_p,) = joined
    return Classes(log_p, normalised=likelihood.normalised)


def start_from(
    inference: Inference,
    variables: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    x: ArrayLike,
    *,
    seed: int = 0,
) -> State:
    """The initial state with parameters that your own code has trained.

    For a model of `from_module`: where a head takes the place of the module's last layer, that
    layer's kernel and bias become those of the head's `logits`, which has to be a layer of the same
    features: of `Dense` and `Laplace`, not of `Sngp`.

    Args:
      inference: of the model; it need not train.
      variables: {'params': ..., 'batch_stats': ...}, as the module's `init` returns and `apply`
        takes them; a list for several particles.
      x: a batch of inputs, for its shape.
      seed: of parameters that the module lacks.

    Raises:
      ValueError: a number of sets other than P, or parameters of the module that the model lacks,
        or that differ in shape, or that it misses; a last layer where the head has random features.
    """
    state = inference.init(jax.random.key(seed), jnp.asarray(x)[:1])
    P = len(state.key)
    each = [variables] * P if isinstance(variables, Mapping) else list(variables)
    if len(each) != P:
        raise ValueError(f"variables: {len(each)} sets for {P} particles")
    own = [_flat(one) for one in each]
    of_backbone = set(paths(state.params.get("backbone", {})))
    left = sorted(set(own[0].get("params", {})) - of_backbone)
    if left and "head" in state.collections.get("random_features", {}):
        raise ValueError(
            f"variables.params: {', '.join(left)} are of the module's features, and the head's "
            "logits of random ones; leave them out, and the head is as initialised"
        )
    params = _replaced(state.params, [one.pop("params", {}) for one in own], "params")
    collections = {
        name: _replaced(tree, [one.pop(name, {}) for one in own], name)
        for name, tree in state.collections.items()
    }
    for name in own[0]:
        raise ValueError(f"variables.{name}: the model has no such collection")
    return inference.restart(state.replace(params=params, collections=collections))


def _flat(variables: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Collection -> path -> array."""
    return {
        name: dict(zip(paths(tree), jax.tree.leaves(tree), strict=True))
        for name, tree in variables.items()
    }


def _replaced(tree: Any, own: Sequence[Mapping[str, Any]], name: str) -> Any:
    """A collection [P, ...] with the values in `own`, one set for each particle."""
    names, leaves = list(paths(tree)), jax.tree.leaves(tree)
    prefix = "backbone/"
    inner = {path.removeprefix(prefix) for path in names if path.startswith(prefix)}
    sources = {prefix + path: path for path in inner}
    left = sorted(set(own[0]) - inner)
    layers = {path.rpartition("/")[0] for path in left}  # one: a head has taken its place
    if left and (name != "params" or len(layers) > 1 or "head/logits/kernel" not in names):
        raise ValueError(f"variables.{name}: the model has no {', '.join(left)}")
    sources |= {f"head/logits/{path.rpartition('/')[2]}": path for path in left}
    filled = []
    for path, leaf in zip(names, leaves, strict=True):
        source = sources.get(path)
        if source is None:  # of the head
            filled.append(leaf)
            continue
        if any(source not in one for one in own):
            raise ValueError(f"variables.{name}: {source} is missing")
        value = jnp.stack([jnp.asarray(one[source], leaf.dtype) for one in own])
        if value.shape != leaf.shape:
            raise ValueError(
                f"variables.{name}: {source} has shape {value.shape[1:]}, and the model's "
                f"{leaf.shape[1:]}"
            )
        filled.append(value)
    return jax.tree.unflatten(jax.tree.structure(tree), filled)


def checked(data: Data) -> dict[str, np.ndarray]:
    """The entries as arrays of equal length: floats as float32, a y of bools as int32.

    Raises:
      ValueError: see `fit`.
    """
    if "x" not in data:
        raise ValueError(f"data: entries {sorted(data)}; x is missing")
    arrays = {"x": _checked_x(data["x"])}
    for key, value in data.items():
        array = np.asarray(value)
        if key != "x":
            arrays[key] = _finite(key, array)
        if key == "y" and array.dtype.kind == "b":  # or `nll` would take them for probabilities
            arrays[key] = array.astype(np.int32)
        if len(arrays[key]) != len(arrays["x"]):
            raise ValueError(f"data.{key}: {len(array)} entries for {len(arrays['x'])} examples")
    return arrays


def _checked_x(x: ArrayLike) -> np.ndarray:
    array = np.asarray(x)
    if array.ndim < 2 or not len(array):
        raise ValueError(f"x: shape {array.shape}; [B, ...] with at least one example is needed")
    return _finite("x", array)


def _finite(name: str, array: np.ndarray) -> np.ndarray:
    if array.ndim == 0 or array.dtype.kind not in "biuf":
        raise ValueError(f"{name}: an array of real numbers is needed, not {array.dtype}")
    if array.dtype.kind != "f":
        return array
    if not np.isfinite(array).all():
        first = np.argwhere(~np.isfinite(array))[0]
        raise ValueError(f"{name}: of example {first[0]} is {array[tuple(first)]}")
    return array.astype(np.float32)


def shuffled(arrays: Mapping[str, np.ndarray], batch_size: int, seed: int) -> Iterator[dict]:
    """Batches without end, in a new order each epoch; its incomplete batch is left out."""
    N = len(arrays["x"])
    if batch_size < 1:
        raise ValueError(f"batch_size: {batch_size}; at least 1")
    size, epoch = min(batch_size, N), 0
    while True:
        order = np.random.default_rng((seed, epoch)).permutation(N)
        for start in range(0, N - size + 1, size):
            rows = order[start : start + size]
            yield {key: array[rows] for key, array in arrays.items()}
        epoch += 1


def in_order(arrays: Mapping[str, np.ndarray], batch_size: int) -> Iterator[dict]:
    """Batches of one pass; the last one may be smaller."""
    for start in range(0, len(arrays["x"]), batch_size):
        yield {key: array[start : start + batch_size] for key, array in arrays.items()}


def _check_finite(finite: Sequence[jax.Array], step: int) -> None:
    done = np.stack([np.asarray(one) for one in finite])  # [steps, P]
    if not done.all():
        first, particle = np.argwhere(~done)[0]
        raise FloatingPointError(
            f"step {step - len(done) + 1 + first}: the loss, gradient or update of particle "
            f"{particle} is not finite; a smaller learning rate may help"
        )


def _check_latents(inference: Inference, state: State, arrays: Mapping[str, np.ndarray]) -> None:
    """Refuses labels that do not fit the latents, and latents that are probabilities."""
    y = arrays.get("y")
    if y is None:
        return
    x = arrays["x"][:32]
    mean = np.asarray(jax.jit(inference.predict)(state, x).mean)  # [P M, B, K]
    K = mean.shape[-1]
    likelihood = inference.likelihood
    of_targets = likelihood is not None and likelihood.log_probs is None
    if of_targets and y.dtype.kind != "f":
        raise ValueError(
            f"data.y: {y.dtype}; targets of regression are floats, [N, {K}] (for classes the "
            "likelihood is softmax)"
        )
    if y.dtype.kind == "f":
        if y.ndim != 2 or y.shape[1] != K:
            raise ValueError(
                f"data.y: shape {y.shape}; targets [N, {K}] are needed, as the model has {K} "
                "outputs (class labels are integers)"
            )
        if likelihood is not None and not of_targets:
            _check_soft(y, likelihood.normalised)
            _check_logits(mean)
        return
    if y.ndim != 1:
        raise ValueError(
            f"data.y: shape {y.shape} of integers; class labels are [N], not one-hot, and targets "
            "of regression are floats"
        )
    least, most = int(y.min()), int(y.max())
    if least < 0 or most >= K:
        hint = f"from 0 to {K - 1} are needed" if K > 1 else "two classes need two outputs"
        raise ValueError(
            f"data.y: labels from {least} to {most}; the model has {K} output{'s' * (K > 1)}, so "
            f"{hint} (targets of regression are floats [N, {K}])"
        )
    _check_logits(mean)


def _check_logits(mean: np.ndarray) -> None:
    """Refuses latents [M, B, K] that are probabilities."""
    sums = np.abs(mean.sum(-1) - 1)
    if mean.shape[-1] > 1 and (mean >= 0).all() and (sums < 1e-3).all():
        raise ValueError(
            "module: its outputs are in [0, 1] and sum to 1, as probabilities do; leave the "
            "softmax out, as the likelihood has it"
        )


def _check_soft(y: np.ndarray, normalised: bool) -> None:
    """Refuses floats [N, K] that are not probabilities, as labels of classes may be."""
    off = (y < 0) | (y > 1)
    if normalised:
        off |= np.abs(y.sum(-1, keepdims=True) - 1) > 1e-3
    if off.any():
        n = np.argwhere(off)[0, 0]
        raise ValueError(
            f"data.y: {y[n].round(4).tolist()} of example {n}; floats are probabilities of the "
            "classes here, labels are integers [N], and for targets the likelihood is gaussian"
        )
