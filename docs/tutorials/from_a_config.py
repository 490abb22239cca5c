# %% [markdown]
# # From a config
#
# A config names a part for each factor. Programs train it, save checkpoints, resume and evaluate;
# `load_run` gives the trained run back to Python.

# %%
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

from experiments import load_run

folder = pathlib.Path(tempfile.mkdtemp())  # your own; nothing is written elsewhere


def program(name, *words):
    """What `python -m experiments.NAME` prints (`uncertainty NAME`, where it is installed)."""
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
# Which parts there are; `describe heads.sngp` lists the fields of one, and what they mean:

# %%
print(program("describe", "heads"))

# %% [markdown]
# ## A config and parts of your own
#
# Any part may be one of your own package, `package.module:Name`: data here, and a head. A function
# of data returns its splits; integers are the labels of classes, floats are targets.

# %%
(folder / "mine.py").write_text('''
import numpy as np
from uncertainty import Dense


def spirals(seed=0):
    """Three noisy arms in the plane."""
    rng = np.random.default_rng(seed)

    def sample(size):
        y = rng.integers(0, 3, size)
        r = rng.uniform(0.2, 1, size)
        angle = 4 * r + 2 * np.pi * y / 3 + rng.normal(0, 0.15, size)
        return dict(x=np.stack([r * np.cos(angle), r * np.sin(angle)], 1), y=y)

    return {"train": sample(600), "test": sample(300)}


class Head(Dense):
    """A place for your own."""
''')
(folder / "config.py").write_text("""
from experiments.experiment.base import base


def get_config():
    config = base()
    config.data.train = dict(name="mine:spirals", split="train")
    config.backbone = dict(name="mlp.MLP", widths=(32, 32))
    config.head = dict(name="mine:Head", outputs=3)
    config.inference.size = 5
    config.steps = 200
    config.optimiser.learning_rate = 1e-2
    config.evaluators = dict(test=dict(name="classification", data=dict(split="test")))
    return config
""")
print(program("train", "--config", "config.py", "--workdir", "run"))

# %% [markdown]
# The same command again resumes, or finds the run finished. Every field is a flag:
# `--config.inference.size=10`.
#
# ## Predictions
#
# Inputs go in as the run's data are stored; they are normalised as the training data were. The
# numbers are those of `evaluate`. Far away from the data the members agree and are sure: a deep
# ensemble of networks with ReLU is no measure of the distance to the data. `describe heads.sngp`
# has one that is.

# %%
sys.path.insert(0, str(folder))  # the run names parts of `mine`
run = load_run(folder / "run")
angle = np.linspace(0, 2 * np.pi, 8, endpoint=False)
near, far = np.stack([np.cos(angle), np.sin(angle)], 1), np.zeros((8, 2)) + 30.0
for name, x in (("on the circle", near), ("far away", far)):
    predicted = run.predict(x)
    print(name, predicted.labels, predicted.entropy.round(2), predicted.mutual_information.round(2))

# %% [markdown]
# Several workdirs are one ensemble: `load_run("run", "other")`. What the evaluators `posthoc` and
# `conformal` of a config fitted on held-out examples is used if it is named:
# `load_run("run", posthoc="temperature", conformal="lac")`.
