# %% [markdown]
# # A model of your own, in Python
#
# A Flax module from $x$ `[B, ...]` to logits `[B, K]` and an optax optimiser become a deep
# ensemble, SVGD, SWAG, a Laplace or a BatchEnsemble. No config, no files: everything here is an
# array or a pure function of arrays.

# %%
import functools

import flax.linen as nn
import jax
import optax
from sklearn.datasets import load_digits

from uncertainty import (
    Laplace,
    batch_ensemble,
    call_of,
    fit,
    from_module,
    laplace,
    mapping,
    particles,
    predict,
    run_stage,
    softmax,
    start_from,
    svgd,
    swag,
)
from uncertainty.metrics import evaluate_classification
from uncertainty.priors import gaussian as gaussian_prior

x, y = load_digits(return_X_y=True)
x = (x / 16).astype("float32")
train, test = dict(x=x[:1200], y=y[:1200]), dict(x=x[1400:], y=y[1400:])


# %% [markdown]
# The module is an ordinary one, with batch normalisation, dropout and a flag of its own. How it is
# called is found by inspection: `train`, `training` and `is_training` are true in training,
# `deterministic` and `use_running_average` at prediction.


# %%
class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Dense(32)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = nn.Dropout(0.1, deterministic=not train)(x)
        return nn.Dense(10)(x)


print(call_of(Net()))


def show(name, predicted):
    numbers = evaluate_classification(predicted.log_p, test["y"])
    accuracy, nll = numbers["classification/accuracy"], numbers["classification/nll"]
    print(f"{name:14} {len(predicted.log_p):2} members, accuracy {accuracy:.3f}, NLL {nll:.3f}")


# %% [markdown]
# ## A deep ensemble
#
# `particles` trains five networks side by side, in one compiled program. Particle $p$ is a function
# of the seed and of $p$ alone.

# %%
STEPS = 100
model = from_module(Net(), softmax())
ensemble = particles(model, optax.adam(1e-2), size=5)
state = fit(ensemble, train, steps=STEPS)
predicted = predict(model, ensemble, state, test["x"])
show("deep ensemble", predicted)

# %% [markdown]
# What comes back has the members' `log_p` `[M, B, K]`, and of their mixture `probs`, `entropy` and
# `mutual_information`, the part of the entropy that the members disagree about.

# %%
print(predicted.log_p.shape, predicted.probs.shape, predicted.labels[:8])

# %% [markdown]
# ## Particles that interact: SVGD
#
# Another direction, and the posterior that it follows: a prior, and the number of examples.

# %%
stein = particles(
    model,
    optax.adam(1e-2),
    size=5,
    direction=svgd,
    prior=gaussian_prior(scale=1.0),
    num_examples=len(train["x"]),
)
state = fit(stein, train, steps=STEPS)
show("SVGD", predict(model, stein, state, test["x"]))

# %% [markdown]
# ## SWAG: a Gaussian around the path of further training
#
# A stage extends a trained state. This one trains further at a constant rate and keeps ten draws.

# %%
single = particles(model, optax.adam(1e-2))
trained = fit(single, train, steps=STEPS)
stage = swag(lambda o: particles(model, o), optax.sgd(0.1), steps=50, every=5, samples=10)
state = run_stage(stage, trained, train)
show("SWAG", predict(model, single, state, test["x"]))

# %% [markdown]
# ## Laplace, of parameters that you have trained already
#
# A head takes the place of the module's last layer, which is found by tracing (or named by `last`;
# or `features` names a method that returns the features). `start_from` takes the variables of your
# own `Net().init` or training loop; the stage computes the posterior of the last layer in one pass.
# The posterior is integrated within the one member, by draws of the likelihood.

# %%
own = dict(
    params=jax.tree.map(lambda a: a[0], trained.params["backbone"]),
    batch_stats=jax.tree.map(lambda a: a[0], trained.collections["batch_stats"]["backbone"]),
)  # in the layout of Net().init(...)
model = from_module(Net(), softmax(), head=Laplace(10))
one = particles(model, optax.adam(1e-2))
state = start_from(one, own, train["x"])
state = run_stage(laplace(model, mapping("auto")), state, train)
show("Laplace", predict(model, one, state, test["x"]))

# %% [markdown]
# ## BatchEnsemble: members that share their kernels
#
# Calls of `nn.Dense` and `nn.Conv` get fast weights, wherever they are in the module; `where` is a
# regular expression for their paths. `mc_dropout`, `rank1` and `masksembles` go the same way.

# %%
model = from_module(Net(), softmax(), ensemble=functools.partial(batch_ensemble, size=4))
shared = particles(model, optax.adam(1e-2))
state = fit(shared, train, steps=STEPS)
show("BatchEnsemble", predict(model, shared, state, test["x"]))
