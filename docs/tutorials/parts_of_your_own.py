# %% [markdown]
# # Add a head, an objective, an evaluator
#
# A part is a class or a function. Within the project it is found by its file's name; in a package
# of your own a config names it by `package.module:Name`. Nothing is registered. This page trains a
# classifier with three parts that the project does not have.

# %%
import os
import pathlib
import subprocess
import sys
import tempfile

folder = pathlib.Path(tempfile.mkdtemp())  # your own


def program(name, *words):
    """What `python -m experiments.NAME` prints."""
    command = [sys.executable, "-m", f"experiments.{name}", *map(str, words)]
    path = os.pathsep.join([str(folder), *sys.path])  # for the package below
    environment = dict(os.environ, PYTHONPATH=path)
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return done.stdout


# %% [markdown]
# ## A head
#
# A head maps features `[M or 1, B, D]` to a `Latent`, a Gaussian over the logits `[M or 1, B, K]`;
# without a variance it is a point. This one compares directions: $u_k = s\, w_k^T \phi / (|w_k|
# |\phi|)$. Its fields are those of the config, with types and defaults; a wrong value is refused
# when it is made, with the field's name first.
#
# ## An objective
#
# An objective says what one particle minimises. `latents` is another loss of the latents, per
# example `[M, B]`, which goes with every direction, SVGD in function space included; `inputs` is
# the likelihood at other inputs, and `loss` a loss of its own. The focal loss weighs an example by
# how wrong it is: $-(1 - p_y)^\gamma \log p_y$.
#
# ## An evaluator
#
# An evaluator gets a predictor, which reads a set as the training data were read, and yields
# numbers. It says beforehand which names it yields and which data it reads, so that both are
# checked before training.

# %%
(folder / "mine.py").write_text('''
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from experiments.evaluators import Evaluator, reads
from uncertainty import Head, Latent, Objective, mixture


class Cosine(Head):
    """u_k = s w_k^T phi / (|w_k| |phi|).

    Attributes:
      outputs: K.
      scale: s; above 0.
    """

    outputs: int
    scale: float = 10.0

    def __post_init__(self):
        if not self.scale > 0:
            raise ValueError(f"scale: {self.scale}; a positive number")
        super().__post_init__()

    @nn.compact
    def __call__(self, phi, *, train):  # [M or 1, B, D]
        w = self.param("kernel", nn.initializers.normal(1.0), (phi.shape[-1], self.outputs))
        w = w / jnp.linalg.norm(w, axis=0)
        phi = phi / (jnp.linalg.norm(phi, axis=-1, keepdims=True) + 1e-6)
        return Latent(mean=self.scale * phi @ w)


def focal(gamma: float = 2.0) -> Objective:
    """-(1 - p_y)^gamma log p_y.

    Source: Lin et al. 2017, "Focal loss for dense object detection".
    """
    if gamma < 0:
        raise ValueError(f"gamma: {gamma}; at least 0")

    def latents(likelihood, latent, batch, key, own):
        nll = likelihood.nll(latent, batch["y"], key)  # [M, B]
        return (1 - jnp.exp(-nll)) ** gamma * nll

    return Objective("focal", latents=latents)


def worst_class(data: dict) -> Evaluator:
    """The least accuracy of a class."""

    def run(predict):
        predicted = predict(data)
        right = np.asarray(mixture(predicted.log_p)).argmax(-1) == predicted.y
        of_class = [right[predicted.y == k].mean() for k in np.unique(predicted.y)]
        yield "classification/worst_class_accuracy", min(of_class)

    yields = {"classification/worst_class_accuracy"}
    return Evaluator(run, "classification", yields, reads("data", data))
''')

# %% [markdown]
# The config names them. Here it is one of the project's, with flags:

# %%
print(
    program(
        "train",
        "--config=configs/digits/mlp.py",
        "--workdir=run",
        "--config.steps=100",
        "--config.head={'name': 'mine:Cosine', 'outputs': 8, 'scale': 12.0}",
        "--config.objective={'name': 'mine:focal', 'gamma': 1.0}",
        "--config.evaluators={'worst': {'name': 'mine:worst_class', 'data': {'split': 'test'}}}",
    )
)

# %% [markdown]
# Its description is read from the signature and the docstring:

# %%
print(program("describe", "mine:Cosine"))

# %% [markdown]
# ## Into the project
#
# A part that becomes one of the project's moves to a file of its folder,
# `uncertainty/heads/cosine.py`, and a test inherits its contract by one line. `CONTRIBUTING.md`
# has the signatures of all kinds of parts and where these lines go.
