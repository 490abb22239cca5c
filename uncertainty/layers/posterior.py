"""The posterior of a linear map by Laplace's approximation, and the variance of its output."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from uncertainty import cpu
from uncertainty.cpu import triangle
from uncertainty.layers import double_float
from uncertainty.types import Collections

CURVATURES = ("gaussian", "softmax", "sigmoid")
FUNCTIONS = "functions"  # the collection of F phi, mutable only where functions are drawn
BLOCKS = 4  # of a triangular factor: 5/8 of the products of a full one


class LinearPosterior(nn.Module):
    """var(x) = phi(x)^T P^-1 phi(x), for f_c = beta_c . phi with the prior beta_c ~ N(0, I).

        P_c = I + sum_i lambda_ic phi_i phi_i^T,   lambda = -d^2 log p(y | f) / df_c^2 at the mean f

      'gaussian'  lambda = 1 / noise, one P for all classes: the GP regression posterior with noise
                  variance `noise` (in edward2 `ridge`, whose var = ridge phi^T (ridge I + sum phi
                  phi^T)^-1 phi is the same)
      'softmax'   lambda_ic = p_ic (1 - p_ic), one P for each class, with p = softmax(f)
      'sigmoid'   the same with p = sigmoid(f)

    Source: Liu et al. 2020 (SNGP), equation 9 and algorithm 1; Fortuin et al. 2022 (HetSNGP).
    The prior stays I: nothing decays it.

    P comes from a second pass over the data, or from a moving average in training:

      exact the stage 'laplace' (`uncertainty/stages/laplace.py`) sums over the data once and stores
      the factor L^-1 of P = L L^T in the collection 'precision'. Without it there is no variance.
      momentum  A <- momentum A + (1 - momentum) mean_i lambda_i phi_i phi_i^T in every training
                step, and P = I + num_examples A / (1 - momentum^steps). Prediction factors P at
                every batch; the stage 'laplace' takes the exact sum in its place.

    Accuracy: in directions without data P is the prior's I, but S = sum lambda phi phi^T of a
    million examples has rounding errors of eps |S| = 0.1 in float32. So the exact pass stores S as
    a pair of float32 (`layers/double_float.py`) and refines the factor with it (`refined_factor`):
    the variance is accurate to about 2e-5 for |S| = 1e8 and 2e-4 for 1e10. Alternatives: float64
    does not exist on TPU, and on the host it needs a callback from programs that are sharded and
    traced for shapes; compensated sums do not help a factorisation in float32; a QR update of a
    square root would work (errors of eps sqrt |S|), but factorises [m + B, m] at every batch and
    gathers sharded arrays. The moving average of `momentum` is in float32: if N |phi|^2 is above
    1e5, expect errors of eps N |phi|^2 away from the data until the stage replaces it.

    Each mean is over the global batch (with `accumulate`, over each of its parts in turn), and over
    members if the features have them. One P per class takes K m^2 numbers: for many classes choose
    'gaussian'.

    Differences from the papers: 'softmax' leaves out the covariance between classes, the -p_k p_l
    of the full curvature diag(p) - p p^T (so do Liu et al.). The variance of each f_k is then too
    small, never too large: by 1.0 to 1.7 times for 100 examples of 10 features and 2 to 10 classes,
    by 1.2 to 4.5 for 1,000, and without bound as data grow, since a common shift of all f_k, with
    the prior's variance 1, does not change the softmax. The differences f_k - mean_l f_l, which do,
    have a variance that is about right for many classes and up to twice too large for two.
    'gaussian' and 'sigmoid' have no such covariance. edward2's moving average is P <- momentum P +
    (1 - momentum) Phi^T Phi / B, in which the prior decays and a batch counts as the whole data
    set; with num_examples=1 ours does the latter too. p (1 - p) is taken at temperature 1.

    Attributes:
      curvature: 'gaussian', 'softmax' or 'sigmoid'.
      noise: variance of Gaussian targets, for 'gaussian'.
      momentum: of the moving average, or None for the exact pass.
      num_examples: N, the size of the training set, with `momentum`.

    Raises:
      ValueError: an unknown curvature, a number out of range, or `momentum` without `num_examples`.
    """

    curvature: str = "gaussian"
    noise: float = 1.0
    momentum: float | None = None
    num_examples: int | None = None

    def __post_init__(self):
        if self.curvature not in CURVATURES:
            allowed = ", ".join(map(repr, CURVATURES))
            raise ValueError(f"curvature: {self.curvature!r}; allowed {allowed}")
        if not self.noise > 0:
            raise ValueError(f"noise: {self.noise}; a positive variance is needed")
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise ValueError(f"momentum: {self.momentum}; from 0 to below 1, or None")
        if (self.momentum is None) != (self.num_examples is None):
            raise ValueError(
                f"num_examples: {self.num_examples}; the size of the training set is needed with "
                "momentum, and only then"
            )
        if self.num_examples is not None and self.num_examples < 1:
            raise ValueError(f"num_examples: {self.num_examples}; at least 1")
        super().__post_init__()

    @nn.compact
    def __call__(self, phi: jax.Array, mean: jax.Array, *, train: bool) -> jax.Array | None:
        """The variance [M, B, 1], or [M, B, K] of each class; None in training and without P.

        Args:
          phi: features [M, B, m].
          mean: f [M, B, K].
        """
        phi = jax.lax.stop_gradient(phi.astype(jnp.float32))
        m = phi.shape[-1]
        shape = (m, m) if self.curvature == "gaussian" else (mean.shape[-1], m, m)
        if self.momentum is not None:
            average = self.variable("precision", "average", jnp.zeros, shape)
            weight = self.variable("precision", "weight", jnp.zeros, ())  # 1 - momentum^steps
        if self.is_initializing():
            return None

        def changes(collection: str) -> bool:
            return self.is_mutable_collection(collection)

        if train:
            if self.momentum is not None and changes("precision"):
                update = self._gram(phi, mean) / phi.shape[1]
                average.value = self.momentum * average.value + (1 - self.momentum) * update
                weight.value = self.momentum * weight.value + 1 - self.momentum
            return None
        if changes("moments"):  # the pass over the data
            total = self.variable("moments", "sum", jnp.zeros, shape)
            rest = self.variable("moments", "rest", jnp.zeros, shape)
            more = self._exact_gram(phi, mean)
            total.value, rest.value = double_float.add((total.value, rest.value), more)
            return None
        if self.has_variable("moments", "sum"):
            factor = refined_factor(
                self.get_variable("moments", "sum"), self.get_variable("moments", "rest")
            )
            if changes("precision"):
                self.put_variable("precision", "factor", factor)
        elif self.has_variable("precision", "factor"):
            factor = self.get_variable("precision", "factor")
        elif self.num_examples is not None:  # with a momentum
            sums = self.num_examples * average.value / jnp.maximum(weight.value, 1e-30)
            factor = inverse_factor(sums)
        else:
            return None
        if changes(FUNCTIONS):  # for draws of f that agree at all inputs: `predictive.functions`
            self.put_variable(FUNCTIONS, "whitened", whitened(phi, factor))
        return quadratic(phi, factor)

    def _gram(self, phi: jax.Array, mean: jax.Array) -> jax.Array:
        """Sum over B and mean over M of lambda phi phi^T, [m, m] or [K, m, m]."""
        M = phi.shape[0]
        if self.curvature == "gaussian":
            return gram(phi) / (self.noise * M)
        return jax.lax.map(lambda w: gram(phi * jnp.sqrt(w)[..., None]), self._weights(mean)) / M

    def _exact_gram(self, phi: jax.Array, mean: jax.Array) -> double_float.Pair:
        """`_gram` as a pair: factors are applied to the features, whose rounding is harmless."""

        def one(weight: jax.Array | float) -> double_float.Pair:
            rows = phi * jnp.sqrt(weight / phi.shape[0])
            # Members side by side, so that a sharded B stays the leading axis.
            return double_float.gram(jnp.moveaxis(rows, 0, 1).reshape(-1, phi.shape[-1]))

        if self.curvature == "gaussian":
            return one(1 / self.noise)
        return jax.lax.map(lambda w: one(w[..., None]), self._weights(mean))

    def _weights(self, mean: jax.Array) -> jax.Array:
        """lambda [K, M, B] of each class."""
        mean = jax.lax.stop_gradient(mean)
        p = jax.nn.softmax(mean) if self.curvature == "softmax" else jax.nn.sigmoid(mean)
        return jnp.moveaxis(p * (1 - p), -1, 0)


def is_fitted(collections: Collections) -> bool:
    """Whether the stage 'laplace' has fitted a layer in these collections."""
    return any(path[-1] == "factor" for path in flatten_dict(collections.get("precision", {})))


def gram(phi: jax.Array) -> jax.Array:
    """sum_mb phi phi^T of phi [M, B, m], [m, m]."""
    return jnp.einsum("mbi,mbj->ij", phi, phi, precision=jax.lax.Precision.HIGHEST)


@jax.custom_batching.sequential_vmap  # else vmap would compute both branches of the condition
def inverse_factor(moments: jax.Array) -> jax.Array:
    """The lower triangular F with F^T F = (I + moments)^-1, for [..., m, m].

    F = L^-1 of the Cholesky factor L. If rounding has made I + moments indefinite (condition
    numbers near 1 / eps), its eigenvalues are used, which cannot be below 1.
    """
    m = moments.shape[-1]
    identity = jnp.eye(m)

    def by_cholesky(precision: jax.Array) -> jax.Array:
        # LAPACK reads only the lower triangle, so it need not be symmetric.
        return inverse_triangle(jax.lax.linalg.cholesky(precision, symmetrize_input=False))

    def by_eigenvalues(precision: jax.Array) -> jax.Array:
        values, vectors = jnp.linalg.eigh(precision)
        root = vectors.T / jnp.sqrt(jnp.maximum(values, 1.0))[:, None]
        # root = Q R with R upper triangular; with rows and columns reversed it is lower.
        return jnp.linalg.qr(root[:, ::-1], mode="r")[::-1, ::-1]

    def one(moments: jax.Array) -> jax.Array:
        precision = identity + moments
        factor = by_cholesky(precision)
        return jax.lax.cond(
            jnp.all(jnp.isfinite(factor)), lambda: factor, lambda: by_eigenvalues(precision)
        )

    flat = moments.reshape(-1, m, m)
    return jax.lax.map(one, flat).reshape(moments.shape)


@jax.custom_batching.sequential_vmap  # as above
def refined_factor(moments: jax.Array, rest: jax.Array) -> jax.Array:
    """F for P = I + moments + rest, a pair of float32, as accurate as float32 allows.

    With F from a Cholesky factorisation in float32, T = F P F^T has a condition number that is
    smaller by 1 / (m eps), and the next factor is that of T times F; T itself comes from products
    with twice the digits (`layers/double_float.py`). Two rounds suffice up to about |P| = 1e8, and
    one, which is `inverse_factor`, if P is well conditioned for float32. So that no factorisation
    fails by its own rounding, off-diagonals are first divided by 1 + m eps, which the next round
    corrects. Source: Rump 1990, "Approximate inverses of almost singular matrices still contain
    useful information"; Ogita and Oishi 2012, "Accurate and robust inverse Cholesky factorization".

    Args:
      moments, rest: [..., m, m].
    """
    m = moments.shape[-1]
    identity = jnp.eye(m)
    zeros = jnp.zeros((m, m))
    shrink = jnp.where(identity, 1.0, 1 / (1 + m * jnp.finfo(jnp.float32).eps))

    def one(pair: double_float.Pair) -> jax.Array:
        P = double_float.add(pair, (identity, zeros))

        def unfinished(carry: tuple) -> jax.Array:
            _, _, condition, rounds = carry
            return (condition > 100) & (rounds < 6)

        def improve(carry: tuple) -> tuple:
            T, F, _, rounds = carry
            L = jax.lax.linalg.cholesky(T * shrink, symmetrize_input=False)
            G = inverse_triangle(L)
            F, _ = double_float.matmul_transposed((G, zeros), (F.T, zeros))
            condition = jnp.max(jnp.sum(G**2, axis=0)) * jnp.max(jnp.diagonal(T))
            carry = T, F, condition, rounds + 1
            return jax.lax.cond(
                unfinished(carry), lambda: (transformed(F), *carry[1:]), lambda: carry
            )

        def transformed(F: jax.Array) -> jax.Array:  # F P F^T
            FP = double_float.matmul_transposed((F, zeros), P)
            return double_float.matmul_transposed(FP, (F, zeros))[0]

        _, F, *_ = jax.lax.while_loop(unfinished, improve, (P[0], identity, jnp.inf, 0))
        # Not finite: P is still not positive definite, or is not finite itself.
        return jax.lax.cond(jnp.all(jnp.isfinite(F)), lambda: F, lambda: inverse_factor(pair[0]))

    flat = moments.reshape(-1, m, m), rest.reshape(-1, m, m)
    return jax.lax.map(one, flat).reshape(moments.shape)


def inverse_triangle(L: jax.Array) -> jax.Array:
    """L^-1 of a lower triangular L [m, m]."""
    if cpu.enabled():
        return triangle.inverse(L)
    return jax.lax.linalg.triangular_solve(L, jnp.eye(len(L)), left_side=True, lower=True)


def whitened(phi: jax.Array, factor: jax.Array) -> jax.Array:
    """F phi, [M, B, m] or [M, B, K, m]: with z ~ N(0, I_m), z . F phi has the posterior's law."""
    product = jnp.einsum("...ij,nbj->nb...i", factor, phi, precision=jax.lax.Precision.HIGHEST)
    return product


def quadratic(phi: jax.Array, factor: jax.Array) -> jax.Array:
    """|F phi|^2 for phi [M, B, m] and a lower triangular F [m, m] or [K, m, m]: [M, B, 1 or K].

    A product with F instead of a triangular solve at every batch; blocks of zeros in F are skipped.
    """
    m = phi.shape[-1]
    step = m if m < 64 * BLOCKS else -(-m // BLOCKS)

    def one(F: jax.Array) -> jax.Array:
        total = jnp.zeros(phi.shape[:-1])
        for start in range(0, m, step):
            end = min(start + step, m)
            rows = F[start:end, :end]
            # Near the data, large terms cancel to a small result.
            part = jnp.matmul(phi[..., :end], rows.T, precision=jax.lax.Precision.HIGHEST)
            total = total + jnp.sum(part**2, axis=-1)
        return total

    if factor.ndim == 2:
        return one(factor)[..., None]
    return jnp.moveaxis(jax.lax.map(one, factor), 0, -1)
