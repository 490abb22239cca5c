"""The few types that everything else is written in.

Letters in every shape comment: P particles, M members, B batch, T tokens, D features,
K latents (classes), R covariance factors, E experts, C expert capacity, S samples.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax

from uncertainty.rules import Rules

Params = Any  # a pytree of arrays
Collections = dict[str, Any]  # Flax variable collections other than 'params'
# At least 'x' [B, ...]; 'y' [B] or [B, K] where there are labels. A nested dict is another stream,
# of as many examples as it has. Where each particle has its own examples: [P, B, ...], but streams.
Batch = dict[str, Any]
Metrics = dict[str, jax.Array]


class Latent(flax.struct.PyTreeNode):
    """A Gaussian over the latent u = f(x) of each member and example.

    u ~ N(mean, diag(variance) + factors factors^T); `None` stands for zero. With a projection the
    noise lives in Q dimensions in place of K: u = mean + projection^T e, e ~ N(0, diag(variance) +
    factors factors^T).
    """

    mean: jax.Array  # [M, B, K]
    variance: jax.Array | None = None  # [M, B, K], or [M, B, 1] for one value shared by the classes
    factors: jax.Array | None = None  # [M, B, K, R]
    # The part of `variance` that more data would take away, [M, B, K or 1]: what the parameters
    # leave open, not noise of the labels. It is in `variance` already.
    epistemic: jax.Array | None = None
    projection: jax.Array | None = (
        None  # [M, Q, K]; variance is then [M, B, Q], factors [M, B, Q, R]
    )


class Likelihood(NamedTuple):
    """p(y | u), integrated over u alike in training and in evaluation.

    Classes have `log_probs` and no `moments`; real-valued outcomes the other way round.
    """

    nll: Callable[[Latent, jax.Array, jax.Array], jax.Array]  # latent, labels, key -> nats [M, B]
    log_probs: Callable[[Latent, jax.Array], jax.Array] | None = None  # latent, key -> [M, B, K]
    moments: Callable[[Latent], tuple[jax.Array, jax.Array]] | None = None  # mean, variance of y
    normalised: bool = True  # probabilities of the classes sum to 1


class Monitor(NamedTuple):
    """What is shown of collections that layers keep in training, such as the load of experts."""

    collections: tuple[str, ...]  # the names of those that it reads
    # those collections of all particles, [P, ...], on the host -> numbers by the names that they
    # have in a record, and a short text that stands for them
    run: Callable[[Collections], tuple[dict[str, float], str]]


class Posterior(NamedTuple):
    """What a head's last layer takes for the likelihood, where it has a posterior of its own."""

    curvature: str  # 'gaussian', or the name of a likelihood of classes
    noise: float  # variance of a Gaussian outcome, for 'gaussian'
    field: str = ""  # where in the head's fields these are, such as 'mean'
    moving: bool = False  # training makes it, by a moving average, and not only a stage


class Backbone(nn.Module):
    """x [M or 1, B, ...] -> features [M or 1, B, D], called as `backbone(x, train=...)`.

    Layers that may be replaced are fields: `dense`, `conv`, `norm`, `dropout`, those that there
    are. Below is what others ask of a backbone, with the answer of one that has nothing to declare.
    """

    @property
    def experts(self) -> Callable[..., Any] | None:
        """A field, where there are some: factory of a mixture, `layers/moe/experts.py`."""
        return None

    @property
    def sizes(self) -> dict[str, Any]:
        """The fields that say how many features there are, with what stands for None."""
        return {}

    @property
    def width_unit(self) -> int:
        """What divides the field `width`."""
        return 1

    @property
    def input_layers(self) -> tuple[str, ...]:
        """Paths of layers that see the input, or an image that was flattened: not in groups."""
        return ()

    @property
    def batch_dependent(self) -> bool:
        """Whether at prediction an example's features depend on the others of its batch."""
        return False

    @property
    def sharding(self) -> Rules:
        """Mesh axes of the trailing dimensions of parameters, where the config has no rule."""
        return ()

    @property
    def monitors(self) -> tuple[Monitor, ...]:
        """What is shown of its collections in training."""
        return ()

    @nn.nowrap
    def patches(self, shape: Sequence[int]) -> tuple[int, int, int] | None:
        """What its position embeddings are of, where it has some: see `vit.ViT.patches`."""
        return None


class Head(nn.Module):
    """Features [M or 1, B, D] -> Latent [M or 1, B, K], called as `head(phi, train=...)`."""

    @property
    def posterior(self) -> Posterior | None:
        """That of its last layer, if it has one."""
        return None


class Network(nn.Module):
    """x [B, ...] -> Latent [M, B, K], called as `network(x, train=...)`: what ensembles make."""

    backbone: Backbone
    head: Head

    @property
    def variational(self) -> bool:
        """Whether the parameters are those of a posterior, whose KL from a prior is in the loss."""
        return False


class Model(NamedTuple):
    """One network and its likelihood, as pure functions of the parameters.

    What follows `features` is what the network declares of itself, see `Backbone`, `Head` and
    `Network`.
    """

    init: Callable[[jax.Array, jax.Array], tuple[Params, Collections]]  # key, x [B, ...]
    # params, collections, x, key, *, train, mutable=(), mask=None -> latent, collections,
    # auxiliary loss []
    forward: Callable[..., tuple[Latent, Collections, jax.Array]]
    likelihood: Likelihood
    # params, collections, x, key, mask=None -> phi [M, B, D] at prediction, or [1, B, D] if members
    # share it
    features: Callable[..., jax.Array] | None = None
    monitors: tuple[Monitor, ...] = ()
    batch_dependent: bool = False
    sharding: Rules = ()
    posterior: Posterior | None = None
    variational: bool = False


class Samples(flax.struct.PyTreeNode):
    """S parameter sets of each particle, that predictions average over in place of the last."""

    params: Params  # [P, S, ...]
    collections: Collections  # [P, S, ...]
    taken: jax.Array  # [P, S], bool; one that is not taken yet stands for the particle as it is


class State(flax.struct.PyTreeNode):
    """All that a checkpoint holds. Every leaf but `step` leads with P."""

    step: jax.Array  # []
    key: jax.Array  # [P], one typed key for each particle, so that a particle is a slice
    params: Params  # [P, ...]
    collections: Collections  # [P, ...]
    opt_state: Any  # [P, ...], optax's; () where nothing is to be trained any more
    samples: Samples | None = None
    hyper: dict[str, jax.Array] | None = None  # name -> [P], what particles differ in by intent
    slow: Any = None  # [P, ...], the objective's slow copies of parameters


class Inference(NamedTuple):
    """How parameters follow from data: optax's (init, update), plus predict.

    `separable` promises that `update(state, batch)` of a slice of the particles is the slice of
    `update(state, batch)`; only then may particles be looped over or sharded without communication.
    With `own_examples` that is so of a slice of the batch too, whose arrays then lead with P.
    """

    init: Callable[[jax.Array, jax.Array], State]  # key, x [B, ...]
    update: Callable[[State, Batch], tuple[State, Metrics]]
    # state, x [B, ...], mask=None -> [P M, B, K]; where mask [B] is False, an example only fills up
    # the batch (`uncertainty/layers/moe/mask.py`)
    predict: Callable[..., Latent]
    separable: bool = False
    own_examples: bool = False
    # The state with all that is derived from its parameters made again: after others are put there.
    restart: Callable[[State], State] = lambda state: state


class Own(NamedTuple):
    """What a particle has besides its network, for its objective."""

    params: Params = None  # the objective's own
    slow: Any = None  # its slow copies
    hyper: dict[str, jax.Array] = {}  # name -> [], only those that particles differ in
    step: jax.Array | int = 0


class Aux(NamedTuple):
    """What comes with an objective's loss."""

    collections: Collections
    nll: jax.Array | None = None  # [M, B], of the labels; None where there are none
    metrics: Metrics = {}  # scalars, shown under their names
    auxiliary: jax.Array | float = 0.0  # the network's own losses, which are added


class Objective(NamedTuple):
    """What one particle minimises, apart from its prior and its network's auxiliary losses.

    It is the likelihood, the mean of nll [M, B], unless one of the first three is given:

      inputs   the likelihood elsewhere: model, params, collections, batch, key, own -> the batch
               with inputs of this particle's own, which count as constants. For all directions.
      latents  another loss of the latents: likelihood, latent, batch, key, own -> per example
               [M, B]. For all directions.
      loss     in place of both, a loss of its own: model, params, collections, batch, key, own ->
               loss [], Aux. For directions that need no latents.

    `own` is an `Own`. The objective may have parameters of its own, which are trained with the
    network's and lie beside them as `objective`, and slow copies of any, which are kept and not
    trained. All functions are pure, and of one particle.
    """

    name: str = "likelihood"
    inputs: Callable[..., Batch] | None = None
    latents: Callable[..., jax.Array] | None = None
    loss: Callable[..., tuple[jax.Array, Aux]] | None = None
    # key, model, params, collections, x [B, ...] -> parameters of its own
    init: Callable[..., Params] | None = None
    start: Callable[[Params, Params], Any] | None = None  # params, its own -> slow copies
    # slow copies, params, its own, step -> slow copies: after each step, at the new parameters
    follow: Callable[[Any, Params, Params, jax.Array], Any] | None = None
    reads: tuple[str, ...] = ()  # which of `own.hyper` (`inference/hyper.py`)


LIKELIHOOD = Objective()


class Direction(NamedTuple):
    """Where the particles move: what an optimiser takes for their gradients."""

    # model, state, batch, keys [P] -> gradients, collections, metrics, all leading with P
    update: Callable[[Model, State, Batch, jax.Array], tuple[Params, Collections, Metrics]]
    separable: bool = False  # particles do not interact
    # params, standard normal noise -> the noise of its diffusion, both [P, ...]: for samplers
    diffusion: Callable[[Params, Params], Params] | None = None


class Stage(NamedTuple):
    """What follows training: it adds to a trained State.

    What it needs on the way is its `carry`, a tree whose leaves lead with P (or are scalars); until
    `finish` the state stays one that predicts. `begin` and `finish` get an example batch `x`
    [B, ...] for its shape. All three are pure.

    Of `steps` and `passes` one is positive. A pass shows `update` every example of `data` once and
    in order, and adds what its examples add, in any partition; `steps` are so many batches of
    training, shuffled and augmented, and the metrics are then those of `Inference.update`.
    """

    begin: Callable[[State, jax.Array], Any]  # -> carry
    update: Callable[[State, Any, Batch], tuple[State, Any, Metrics]]
    finish: Callable[[State, Any, jax.Array], State]
    steps: int = 0
    passes: int = 0
    data: str = "train"  # or 'validation'
    separable: bool = True  # a slice of the particles is a stage of its own
    learning_rate: Callable[[int], jax.Array | float] | None = None  # of a step


class Kernel(NamedTuple):
    """A kernel between P particles z_i, by their inner products alone.

    `matrices(inner [P, P])` gives the Gram matrix K and the matrix F [P, P] with
    sum_j grad_{z_j} k(z_j, z_i) = sum_j F_ij z_j, so that all that is as long as z is two matrix
    products, K @ scores + F @ z.

    A kernel phi(a) . phi(b) may have `features`, the map phi of each number of z by itself that
    comes before inner products; F is then that of phi, P I.
    """

    matrices: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
    stationary: bool  # k(a, b) = k(a - b): then z may be centred first, which keeps digits
    features: Callable[[jax.Array], jax.Array] | None = None
    proportional: bool = False  # F = diag(d) - c K: then K @ (scores - c z) + d z is one product


class Prior(NamedTuple):
    """p(theta) of one particle."""

    potential: Callable[[Params], jax.Array]  # -log p(theta) up to a constant, in nats
    sample: Callable[[jax.Array, Params], Params]  # key, parameters for their shapes -> a draw


class Target(NamedTuple):
    """The posterior of one particle, p(theta | D) ~ (p(D | theta) p(theta))^(1 / temperature).

    Everything is kept per example: the gradient of -1/N log p(D, theta) is that of the mean nll
    plus that of `potential`, and forces and noise carry temperature / N. So a likelihood that is
    tempered alone, p(D | theta)^(1 / t), is N / t examples in place of N. What a network loses
    besides, say for the balance of experts, is a part of the target: a factor exp(-N loss).
    """

    prior: Prior | None = None
    num_examples: int | None = None
    temperature: float = 1.0  # 1 is Bayes; below it the posterior is 'cold'
    likelihood_temperature: float = 1.0  # t

    def potential(self, params: Params, scale: jax.Array | float = 1.0) -> jax.Array | float:
        """-1/N log p(theta) of the prior with `scale` times its scale; 0 without a prior."""
        if self.prior is None:
            return 0.0
        return self.prior.potential(jax.tree.map(lambda w: w / scale, params)) / self.N()

    def scale(self) -> float:
        """temperature / N.

        Raises:
          ValueError: N is not known.
        """
        return self.temperature / self.N()

    def N(self) -> float:
        """The examples that the tempered likelihood counts for, N / t.

        Raises:
          ValueError: the size of the data set is not known.
        """
        if self.num_examples is None:
            raise ValueError("num_examples: a posterior needs the size of the data set")
        return self.num_examples / self.likelihood_temperature
