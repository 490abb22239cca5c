"""Known two-dimensional densities: exact draws, distances to them, a figure."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.evaluators.posterior import wasserstein
from experiments.reports.style import GREY, PALETTE, styled, wrapped
from uncertainty.types import Latent, Likelihood, Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEAN = np.array([-0.68, 0.80])
COVARIANCE = 5 * np.array([[0.22, 0.16], [0.16, 0.67]])
Y_STD = 3.0
DIRECTIONS = 32  # of the sliced distance
MMD_STD = 0.5  # of its kernel, in units of z


class Density(NamedTuple):
    """p(z) on the plane, and the settings with which it is sampled."""

    title: str
    log_density: Callable[[jax.Array], jax.Array]  # [..., 2] -> [...], up to a constant
    draw: Callable[[np.random.Generator, int], np.ndarray]  # -> [n, 2]
    summary: Callable[[np.ndarray], dict[str, float]]  # [P, 2] -> values of `columns`
    columns: tuple[Mapping[str, Any], ...]  # of `summary`, for a Study
    start: tuple[tuple[float, float], float]  # mean and standard deviation of the first particles
    size: int  # P
    steps: int
    axes: tuple[np.ndarray, np.ndarray]  # grid of the figure
    labels: tuple[str, str]


def gaussian() -> Density:
    """N(MEAN, COVARIANCE), from 100 particles that start at N([-1, 5], I / 2), in 10,000 steps.

    From the notebook of D'Angelo & Fortuin 2021, "Repulsive deep ensembles are Bayesian".
    """
    precision, root = np.linalg.inv(COVARIANCE), np.linalg.cholesky(COVARIANCE)

    def summary(z: np.ndarray) -> dict[str, float]:
        covariance = np.cov(z.T, ddof=0)
        return dict(
            mean_error=float(np.linalg.norm(z.mean(0) - MEAN)),
            covariance_error=float(
                np.linalg.norm(covariance - COVARIANCE) / np.linalg.norm(COVARIANCE)
            ),
            variance_ratio=float(np.trace(covariance) / np.trace(COVARIANCE)),
        )

    return Density(
        title="Two-dimensional Gaussian, 100 particles",
        log_density=lambda z: -0.5 * jnp.sum((z - MEAN) @ precision * (z - MEAN), -1),
        draw=lambda rng, n: MEAN + rng.normal(size=(n, 2)) @ root.T,
        summary=summary,
        columns=(
            dict(key="mean_error", header="Error of mean", better="lower", digits=3),
            dict(key="covariance_error", header="Rel. error of cov.", better="lower", digits=3),
            dict(key="variance_ratio", header="Variance / true (1)", digits=2),
        ),
        start=((-1.0, 5.0), 0.5**0.5),
        size=100,
        steps=10_000,
        axes=(np.linspace(-5, 4, 91), np.linspace(-5, 7, 121)),
        labels=("$z_1$", "$z_2$"),
    )


def funnel() -> Density:
    """Neal's funnel, y ~ N(0, 3^2), x ~ N(0, e^y), as z = (x, y); 500 particles, 5,000 steps.

    Source: Neal 2003, "Slice sampling", and the notebook named in `gaussian`, whose N(y; 0, 3)
    N(x; 0, e^(y / 2)) is read with standard deviations, which gives Neal's funnel. Its initial
    particles are not known; ours are drawn from N(0, I). x has variance e^4.5, but its tails are
    too heavy to estimate this from a sample of this size, so the summary is of y alone.
    """

    def log_density(z: jax.Array) -> jax.Array:
        x, y = z[..., 0], z[..., 1]
        return -0.5 * (y / Y_STD) ** 2 - 0.5 * x**2 * jnp.exp(-y) - 0.5 * y

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        y = rng.normal(0, Y_STD, n)
        return np.stack([rng.normal(0, np.exp(y / 2)), y], axis=1)

    def summary(z: np.ndarray) -> dict[str, float]:
        y = z[:, 1]
        return dict(y_mean=float(y.mean()), y_std=float(y.std()), neck=float(np.mean(y < -Y_STD)))

    return Density(
        title="Neal's funnel, 500 particles",
        log_density=log_density,
        draw=draw,
        summary=summary,
        columns=(
            dict(key="y_mean", header="Mean of y (0)", digits=2),
            dict(key="y_std", header="SD of y (3)", digits=2),
            dict(key="neck", header="y < -3 (15.9)", unit="%", digits=1),
        ),
        start=((0.0, 0.0), 1.0),
        size=500,
        steps=5_000,
        # Wide, with a fine grid in the neck
        axes=(np.sinh(np.linspace(-9, 9, 401)) / np.sinh(9) * 15, np.linspace(-10, 8, 181)),
        labels=("x", "y"),
    )


DENSITIES = {"gaussian": gaussian, "funnel": funnel}


def as_model(density: Density) -> Model:
    """The density as the posterior of one example without a prior, whose nll is -log p(z)."""
    mean, std = density.start

    def init(key: jax.Array, x: jax.Array) -> tuple[Any, Any]:
        return {"z": jnp.array(mean) + std * jax.random.normal(key, (2,))}, {}

    def forward(params, collections, x, key, *, train, mutable=()):
        return Latent(params["z"][None, None]), collections, jnp.zeros(())

    return Model(
        init, forward, Likelihood(lambda latent, y, key: -density.log_density(latent.mean))
    )


class Distances:
    """Distances of particles [P, 2] to a density, estimated with `n` exact draws of it.

    mmd      sqrt(max(0, 1/P^2 sum_ij k(z_i, z_j) - 2 E k(z_i, x) + E k(x, x'))) with k(a, b) =
             exp(-|a - b|^2 / (2 MMD_STD^2)). The first sum includes i = j, since the particles
             themselves are the approximation; the mean over pairs of draws excludes them.
    w1       the 1-Wasserstein distance of projections, a mean over DIRECTIONS of the plane
    """

    def __init__(self, density: Density, n: int = 10_000, seed: int = 2**31):
        self.draws = density.draw(np.random.default_rng(seed), n)
        total = sum(_k(part, self.draws).sum() for part in np.array_split(self.draws, 20))
        self.within = (total - n) / (n * (n - 1))

    def __call__(self, z: np.ndarray) -> dict[str, float]:
        return dict(mmd=self.mmd(z), w1=self.w1(z))

    def mmd(self, z: np.ndarray) -> float:
        squared = _k(z, z).mean() - 2 * _k(z, self.draws).mean() + self.within
        return float(np.sqrt(max(squared, 0)))

    def w1(self, z: np.ndarray) -> float:
        angles = np.pi * (np.arange(DIRECTIONS) + 0.5) / DIRECTIONS
        directions = np.stack([np.cos(angles), np.sin(angles)])
        return float(wasserstein(z @ directions, self.draws @ directions).mean())


def _k(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    import scipy.spatial.distance

    return np.exp(-scipy.spatial.distance.cdist(a, b, "sqeuclidean") / (2 * MMD_STD**2))


@styled
def picture(density: Density, draws: np.ndarray, methods: Mapping[str, np.ndarray]) -> "Figure":
    """A panel per method: its particles over regions with 50, 90 and 99 % of the mass.

    Args:
      density: the sampled density.
      draws: [n, 2], exact, from which the regions are computed.
      methods: label -> particles [P, 2].
    """
    x, y = density.axes
    log_p = np.asarray(density.log_density(np.stack(np.meshgrid(x, y), axis=-1)))
    levels = np.quantile(np.asarray(density.log_density(draws)), [0.01, 0.1, 0.5])
    figure, axes = wrapped(methods, 1.75, 1.9, most=5, sharex=True, sharey=True)
    columns = axes[0].get_subplotspec().get_gridspec().ncols
    for i, (ax, z) in enumerate(zip(axes, methods.values(), strict=True)):
        ax.contourf(x, y, log_p, [*levels, np.inf], colors=["#eef3f8", "#d5e3ef", "#b3cde3"])
        ax.contour(x, y, log_p, levels, colors=GREY, linewidths=0.4, linestyles="-")
        size = 4 if len(z) > 200 else 9
        ax.scatter(*z.T, s=size, color=PALETTE[1], edgecolors="black", linewidths=0.2, zorder=3)
        ax.set(xlim=x[[0, -1]], ylim=y[[0, -1]])
        outside = np.sum(np.any((z < [x[0], y[0]]) | (z > [x[-1], y[-1]]), axis=1))
        if outside:
            at = dict(transform=ax.transAxes, ha="right", fontsize=7)
            ax.text(0.97, 0.03, f"{outside} outside", **at)
        ax.grid(visible=False)
        ax.spines[["top", "right"]].set_visible(True)
        ax.locator_params(nbins=4, integer=True)
        if i + columns >= len(axes):  # no panel below
            ax.tick_params(labelbottom=True)
            ax.set_xlabel(density.labels[0])
        if i % columns == 0:
            ax.set_ylabel(density.labels[1])
    return figure
