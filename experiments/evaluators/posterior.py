"""Distances between the particles' functions and the true posterior."""

import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.data.source import Source, load
from experiments.evaluators import Data, Evaluator, reads
from experiments.runtime import project
from experiments.runtime.workdir import readable

if TYPE_CHECKING:
    from experiments.prediction.predictions import Predictions
    from experiments.prediction.predictor import Predictor

BAND = (0.025, 0.975)  # of the figure


def posterior(
    reference: str, data: Data, train: Data | None = None, near: float = 0.0
) -> Evaluator:
    """Distances between the members' functions and draws from the posterior, on points of a grid.

    f is the latent's mean in regression, in units of the normalised y, and the probabilities of the
    classes otherwise. Averaged over points and outputs:

      w1          1-Wasserstein distance between the marginals of f, int |F(f) - G(f)| df
      mean_error  |difference of the means of f|
      std_error   |difference of the standard deviations of f|

    and `std_ratio`, the mean standard deviation over that of the reference; overconfident below 1.
    If `train` is given, `inside/` and `outside/` have the same for the points within `near` of a
    training input and for the others. Even draws from the posterior have a distance above 0:
    `floor`. Arrays for the figure are yielded too.

    Args:
      reference: file of `studies.reference`.
      data: spec of the grid on which the reference was computed.
      train: spec of the training data, or None.
      near: a distance, in units of the input before normalisation.
    """

    def run(predict: "Predictor") -> Iterator[tuple[str, Any]]:
        arrays = read(reference)
        p = predict(data)
        x = p.source.raw(np.arange(len(p.source)))["x"]
        if x.shape != arrays["x"].shape or not np.allclose(x, arrays["x"], atol=1e-4):
            raise ValueError(f"reference: {reference} and data have different inputs")
        f, draws = functions(p), arrays["draws"]
        if f.shape[1:] != draws.shape[1:]:
            shapes = f"functions {draws.shape[1:]}, and the network {f.shape[1:]}"
            raise ValueError(f"reference: {reference} has {shapes}")
        observed = trained_on(train)
        for key, value in compared(f, draws, x, observed, near).items():
            yield f"posterior/{key}", value
        for key, value in observed.items():
            yield f"posterior/train_{key}", value
        yield "posterior/x", x
        for name, values in (("", f), ("reference_", draws)):
            yield f"posterior/{name}mean", values.mean(0)
            yield f"posterior/{name}band", np.quantile(values, BAND, axis=0)
        if "map" in arrays:
            yield "posterior/reference_map", arrays["map"]

    def check(source: Source) -> None:
        read(reference)

    parts = ("", "inside/", "outside/") if train else ("",)
    names = distances(*np.array([[[[0.0]], [[1.0]]]] * 2))
    yields = {f"posterior/{part}{name}" for part in parts for name in names}
    return Evaluator(
        run, None, yields, reads("data", data) + reads("train", train, reported=False), check
    )


def functions(p: "Predictions") -> np.ndarray:
    """f of predictions, [M, B, K]."""
    return np.asarray(p.mean if p.log_p is None else np.exp(p.log_p), np.float64)


def read(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a file of `studies.reference`, in float64.

    Raises:
      ValueError: the file is missing or damaged.
    """
    if not is_made(path):
        raise ValueError(f"reference: no file {path}; make it with python -m studies.reference")
    return readable(project.find(path), _arrays)


def _arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        arrays = {key: np.asarray(file[key], np.float64) for key in file if key != "settings"}
    if lacking := {"x", "draws", "second"} - arrays.keys():
        raise ValueError(f"it has no {', '.join(sorted(lacking))}")
    return arrays


def is_made(path: str | pathlib.Path) -> bool:
    """Whether the file exists, here or in the project."""
    return project.find(path).is_file()


def floor(reference: str, train: Any = None, near: float = 0.0) -> dict[str, float]:
    """The metrics of `posterior` for the reference's second set of draws, from other chains.

    Raises:
      ValueError: the file is missing.
    """
    arrays = read(reference)
    return compared(arrays["second"], arrays["draws"], arrays["x"], trained_on(train), near)


def trained_on(train: Any) -> dict[str, np.ndarray]:
    """The unnormalised examples of a spec, x [N, D] and y; None for None."""
    if train is None:
        return {}
    source = load(train)
    return source.raw(np.arange(len(source)))


def compared(
    f: np.ndarray, draws: np.ndarray, x: np.ndarray, shown: dict[str, np.ndarray], near: float
) -> dict[str, float]:
    """`distances` over all points x [B, D], those near the training data, and the others."""
    parts = {"": np.full(len(x), True)}
    if shown:
        close = closest(x, shown["x"]) <= near
        parts |= {"inside/": close, "outside/": ~close}
    return {
        f"{name}{key}": value
        for name, where in parts.items()
        if where.any()
        for key, value in distances(f[:, where], draws[:, where]).items()
    }


def distances(f: np.ndarray, draws: np.ndarray) -> dict[str, float]:
    """The distances of `posterior` between functions f [M, B, K] and draws [S, B, K]."""
    std, true = f.std(0), draws.std(0)
    return dict(
        w1=float(wasserstein(f, draws).mean()),
        mean_error=float(np.abs(f.mean(0) - draws.mean(0)).mean()),
        std_error=float(np.abs(std - true).mean()),
        std_ratio=float(std.mean() / true.mean()),
    )


def wasserstein(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """1-Wasserstein distance between the samples a [M, ...] and b [S, ...] of each column, [...].

    int |F - G|, with F and G the empirical distribution functions. SciPy's takes one column at a
    time.
    """
    both = np.concatenate([a, b])
    steps = np.repeat([1 / len(a), -1 / len(b)], [len(a), len(b)])
    order = np.argsort(both, axis=0)
    apart = np.abs(np.cumsum(steps[order], axis=0))[:-1]
    return np.sum(apart * np.diff(np.take_along_axis(both, order, axis=0), axis=0), axis=0)


def closest(x: np.ndarray, to: np.ndarray) -> np.ndarray:
    """Distance of each x [B, D] to the nearest of `to` [N, D], [B]."""
    return np.sqrt(((x[:, None] - to[None]) ** 2).sum(-1)).min(1)
