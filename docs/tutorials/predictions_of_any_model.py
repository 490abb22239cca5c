# %% [markdown]
# # Score predictions of any model
#
# Predictions of any origin are scored as runs are evaluated. Here they are of scikit-learn: one
# network, and an ensemble of five that start from other weights.

# %%
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

folder = pathlib.Path(tempfile.mkdtemp())  # your own
x, y = load_digits(return_X_y=True)
x = x / 16
known = np.random.default_rng(0).permutation(np.flatnonzero(y < 8))
train, validation, test = np.split(known, [400, 800])
outside = np.flatnonzero(y >= 8)  # the digits 8 and 9 are out of distribution


def fitted(seed):
    model = MLPClassifier((16,), solver="lbfgs", max_iter=30, random_state=seed)
    return model.fit(x[train], y[train])


single, members = fitted(0), [fitted(seed) for seed in range(1, 6)]

# %% [markdown]
# A file has named arrays: `probs`, `log_p` or `logits`, `[M, B, K]` with members apart or `[B,
# K]`, and the labels `y`. Names with a set in front are of other examples.


# %%
def write(name, models):
    def probs(rows):
        return np.stack([model.predict_proba(x[rows]) for model in models])

    np.savez(
        folder / name,
        **{
            "probs": probs(test),
            "y": y[test],
            "validation/probs": probs(validation),
            "validation/y": y[validation],
            "ood/eight_nine/probs": probs(outside),
        },
    )


write("single.npz", [single])
write("ensemble.npz", members)

# %% [markdown]
# Both are scored side by side, with a row more for a temperature that is fitted to the validation
# set, and with intervals of a paired bootstrap for the differences to the first row.


# %%
def program(name, *words):
    """What `python -m experiments.NAME` prints."""
    command = [sys.executable, "-m", f"experiments.{name}", *map(str, words)]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path), COLUMNS="110")
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return done.stdout


print(
    program(
        "score",
        "Single=single.npz",
        "Ensemble=ensemble.npz",
        "--posthoc=temperature",
        "--conformal=lac",
        "--resamples=100",
        "--out=report",
    )
)

# %% [markdown]
# `report/report.html` has the same with figures. The format, what is checked and what the
# intervals mean are in `docs/predictions.md`.
