"""No random number is drawn twice from one key: by the source, and in programs as they run."""

import ast
import collections
import functools
import pathlib

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
import pytest

import uncertainty
from uncertainty import build, views
from uncertainty.inference import executors
from uncertainty.inference.function_values import represent
from uncertainty.inference.hyper import HYPER
from uncertainty.keys import Use, fold

ROOT = pathlib.Path(uncertainty.__path__[0])
SOURCES = {path: ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}


def test_names_have_numbers_of_their_own_beyond_what_is_counted():
    taken = [int(use) for use in Use if use is not Use.HYPER]
    taken += [Use.HYPER + i for i in range(len(HYPER))]
    assert len(taken) == len(set(taken))
    assert all(2**24 < number < 2**31 for number in taken)
    assert {
        use for path, tree in SOURCES.items() if path.name != "keys.py" for use in uses(tree)
    } == set(Use.__members__)


def uses(tree):
    """The names that a module takes from `Use`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "Use":
            yield node.attr


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_module_folds_in_a_number_without_a_name(path):
    if path == ROOT / "keys.py":
        return
    constants = {
        target.id
        for node in SOURCES[path].body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
    }
    for node in ast.walk(SOURCES[path]):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1].startswith("fold"):
            for number in node.args[1:]:
                names = {n.id for n in ast.walk(number) if isinstance(n, ast.Name)}
                assert names, f"{path}:{node.lineno}: {ast.unparse(number)} has no name in Use"
                assert not names & constants, f"{path}:{node.lineno}: {ast.unparse(number)}"


def drawn(fn, *args):
    """Keys that bits are made from in fn(*args), those that make other keys, and what it returns.

    Keys are their words, as often as they are used. Of what it returns keys and steps are computed,
    which no draw and no loss has a part in, so that little of the program is left to compile; all
    else is 0.
    """
    shape, compiled = program(fn, *args) if fn not in PROGRAMS else PROGRAMS[fn]
    PROGRAMS[fn] = shape, compiled
    kept, seen = compiled(args)
    kept = iter(kept)
    out = [
        next(kept) if makes_keys(a) else jnp.zeros(a.shape, a.dtype) for a in jax.tree.leaves(shape)
    ]
    bits, parents = (
        [w for a in arrays for w in {tuple(w) for w in np.asarray(a).reshape(-1, 2).tolist()}]
        for arrays in seen
    )
    return bits, parents, jax.tree.unflatten(jax.tree.structure(shape), out)


def makes_keys(a):
    is_key = jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
    return is_key or (a.shape == () and jnp.issubdtype(a.dtype, jnp.integer))


PROGRAMS = {}  # that are compiled already


def program(fn, *args):
    """The shape of fn(*args), and a compiled function of args that returns keys besides."""
    closed, shape = jax.make_jaxpr(fn, return_shape=True)(*args)

    def run(jaxpr, consts, args, seen):
        values = dict(zip(jaxpr.constvars, consts, strict=True))
        values |= zip(jaxpr.invars, args, strict=True)

        def read(v):
            return v.val if isinstance(v, jex.Literal) else values[v]

        for equation in jaxpr.eqns:
            given, name = [read(v) for v in equation.invars], equation.primitive.name
            if name == "random_bits":
                seen[0].append(jax.random.key_data(given[0]))
            elif name in ("random_split", "random_fold_in"):
                seen[1].append(jax.random.key_data(given[0]))
            elif name == "threefry2x32":  # of the noise of samplers: both words, and counts
                seen[0].append(jnp.stack(jnp.broadcast_arrays(*given[:2]), axis=-1))
            inner = [v for v in equation.params.values() if isinstance(v, jex.ClosedJaxpr)]
            hidden = name in ("scan", "while", "cond") and "random_bits" in str(equation)
            assert not hidden, f"the keys in a {name} would not be seen"
            if inner and name in ("pjit", "jit", "custom_jvp_call", "remat2"):
                out = run(inner[0].jaxpr, inner[0].consts, given, seen)
            else:
                at = [i for i, v in enumerate(equation.invars) if not isinstance(v, jex.Literal)]
                invars = list(dict.fromkeys(equation.invars[i] for i in at))
                single = jex.Jaxpr((), invars, equation.outvars, [equation])
                out = jex.jaxpr_as_fun(jex.ClosedJaxpr(single, ()))(*map(read, invars))
            values |= zip(equation.outvars, out, strict=True)
        return [read(v) for v in jaxpr.outvars]

    def both(args):
        seen = [], []
        out = run(closed.jaxpr, closed.consts, jax.tree.leaves(args), seen)
        return [a for a in out if makes_keys(a)], seen

    return shape, jax.jit(both)


def config(**changes):
    return (
        dict(
            backbone=dict(name="mlp.MLP", widths=(3,)),
            ensemble="single",
            steps=4,
            head=dict(name="heteroscedastic.Heteroscedastic", outputs=3, rank=1),
            likelihood=dict(name="softmax", samples=2),
            optimiser=dict(name="adam", learning_rate=0.1),
        )
        | changes
    )


def inference(**fields):
    return dict(name="particles", size=2, executor="vmap", **fields)


PRIOR = dict(name="gaussian", scale=1.0)
FUNCTIONS = dict(
    name="wgd",
    space="functions",
    estimator="ssge",
    function_prior=3,
    values="probabilities",
    context=dict(name="perturbed"),
)
HYPER_RANGE = dict(learning_rate=dict(low=0.5, high=1.0), label_smoothing=dict(low=0.1, high=0.2))
RUNS = {
    "functions": config(inference=inference(direction=FUNCTIONS, prior=PRIOR)),
    "sampler": config(
        inference=inference(prior=PRIOR), optimiser=dict(name="sgld", learning_rate=0.1)
    ),
    "hyper": config(inference=inference(hyper=HYPER_RANGE), objective="label_smoothing"),
    "teacher": config(
        inference=inference(),
        objective=dict(name="mean_teacher", stream="more"),
        ensemble=dict(name="mc_dropout", size=2, rate=0.5),
    ),
    "views": config(
        inference=inference(),
        objective=dict(
            name="contrastive",
            views=[["crop", "flip"], [dict(name="blur", p=0.5)]],
            symmetry="flip",
            invariance=0.5,
            equivariance=0.4,
            elements=1,
            projector=dict(name="projector.Projector", widths=[2]),
            predictor=dict(name="projector.Projector", widths=[2]),
        ),
    ),
    "together": config(
        inference=inference(direction="together"), objective=dict(name="d_bat", stream="more")
    ),
    "swag": config(
        inference=inference(),
        stages=[
            dict(
                name="swag",
                steps=4,
                every=2,
                samples=3,
                optimiser=dict(name="sgd", learning_rate=0.1),
            )
        ],
    ),
}
X = jnp.ones((4, 4, 4, 1))
BATCH = dict(x=X, y=jnp.arange(4) % 3, more=dict(x=X[:2]))


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_no_two_purposes_of_a_run_draw_from_one_key(name):
    made = build.inference(RUNS[name], num_examples=64)
    stages = build.stages(
        RUNS[name], build.model(RUNS[name]), executors.vmap, dict(train=64, validation=0)
    )
    bits, parents = [], []

    def go(fn, *args):
        new, made_from, out = drawn(fn, *args)
        bits.extend(new), parents.extend(made_from)
        return out

    state = go(made.init, jax.random.key(0), X)
    for _ in range(2):
        state, _ = go(made.update, state, BATCH)
    go(made.predict, state, X)
    for _, stage in stages:
        carry = stage.begin(state, X)
        for _ in range(stage.steps):
            state, carry, _ = go(stage.update, state, carry, BATCH)
        go(stage.finish, state, carry, X)
    again = {key for key, count in collections.Counter(bits).items() if count > 1}
    assert len(bits) > 10 and again == meant_twice(name, state)
    assert not set(bits) & set(parents)  # what is drawn from is not split as well


def test_the_changes_of_a_view_draw_from_keys_of_their_own():
    view = functools.partial(views.apply, views.byol(4, 4)[1])
    bits, parents, _ = drawn(view, jnp.ones((2, 4, 4, 3)), jax.random.key(0))
    assert 10 < len(bits) == len(set(bits)) and not set(bits) & set(parents)


def meant_twice(name, state):
    """Keys of draws that are compared with each other, and so are the same by intent."""
    model, keys = build.model(RUNS[name]), set()
    if name not in ("functions", "hyper", "teacher"):
        return keys
    forward = jax.vmap(lambda p, k: model.forward(p, {}, X, k, train=True)[0])
    shapes = jax.eval_shape(forward, state.params, state.key)
    latent = jax.tree.map(lambda a: jnp.ones(a.shape), shapes)

    def nll(u, key):  # of the labels, and of all classes alike
        return model.likelihood.nll(u, BATCH["y"], jax.random.split(key)[1])

    def log_probs(u, key):  # of the student and of the teacher
        return model.likelihood.log_probs(u, fold(key, Use.CONSISTENCY))

    def functions(u, keys):  # of the particles and of the prior
        return represent(model, u, fold(keys[0], Use.DRAWS), "probabilities")

    draws = dict(functions=functions, hyper=jax.vmap(nll), teacher=jax.vmap(log_probs))[name]
    return keys.union(*(drawn(draws, latent, fold(state.key, step))[0] for step in range(2)))


def test_a_key_is_folded_alike_alone_and_among_others():
    keys = jax.random.split(jax.random.key(3), 2)
    many, alone = fold(keys, Use.NOISE), fold(keys[1], Use.NOISE)
    np.testing.assert_array_equal(jax.random.key_data(many[1]), jax.random.key_data(alone))
