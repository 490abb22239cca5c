"""The types that all other modules use.

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
# At least 'x' [B, ...]; 'y' [B] or [B, K] if there are labels. A nested dict is another stream,
# with its own number of examples. If particles have their own examples, arrays are [P, B, ...],
# except in streams.
Batch = dict[str, Any]
Metrics = dict[str, jax.Array]


class Latent(flax.struct.PyTreeNode):
    """A Gaussian over the latent u = f(x) of each member and example.

    u ~ N(mean, diag(variance) + factors factors^T); `None` means zero. With a projection the noise
    has Q dimensions instead of K: u = mean + projection^T e, e ~ N(0, diag(variance) + factors
    factors^T).
    """

    mean: jax.Array  # [M, B, K]
    variance: jax.Array | None = None  # [M, B, K], or [M, B, 1] for one value shared by the classes
    factors: jax.Array | None = None  # [M, B, K, R]
    # The epistemic part of `variance`, [M, B, K or 1]: uncertainty about the parameters, not label
    # noise. It is included in `variance`.
    epistemic: jax.Array | None = None
    projection: jax.Array | None = (
        None  # [M, Q, K]; variance is then [M, B, Q], factors [M, B, Q, R]
    )


class Posterior(NamedTuple):
    """The likelihood that the posterior of a head's last layer assumes."""

    curvature: str  # 'gaussian', or the name of a likelihood of classes
    noise: float  # variance of Gaussian targets, for 'gaussian'
    field: str = ""  # the head's field that has these, such as 'mean'
    moving: bool = False  # whether training fits it by a moving average, without a stage


class Likelihood(NamedTuple):
    """p(y | u), integrated over u in the same way in training and evaluation.

    Likelihoods of classes have `log_probs` and no `moments`; those of real-valued targets the
    reverse.
    """

    nll: Callable[[Latent, jax.Array, jax.Array], jax.Array]  # latent, labels, key -> nats [M, B]
    log_probs: Callable[[Latent, jax.Array], jax.Array] | None = None  # latent, key -> [M, B, K]
    moments: Callable[[Latent], tuple[jax.Array, jax.Array]] | None = None  # mean, variance of y
    normalised: bool = True  # probabilities of the classes sum to 1
    posterior: Posterior | None = None  # what a head's posterior has to assume; None: not checked

    def of_classes(self, objective: str) -> Callable[[Latent, jax.Array], jax.Array]:
        """`log_probs` of exclusive classes, which this objective needs.

        Raises:
          ValueError: this is not a likelihood of exclusive classes.
        """
        if self.log_probs is None or not self.normalised:
            raise ValueError(
                f"objective: {objective!r} needs exclusive classes, as with likelihood 'softmax'"
            )
        return self.log_probs


class Monitor(NamedTuple):
    """Summarises collections for display in training, such as the load of experts."""

    collections: tuple[str, ...]  # the names of the collections that it reads
    # name -> collection of all particles, [P, ...], on the host -> values for the record by name,
    # and a short text for the progress line
    run: Callable[[Collections], tuple[dict[str, float], str]]


class Backbone(nn.Module):
    """x [M or 1, B, ...] -> features [M or 1, B, D], called as `backbone(x, train=...)`.

    Replaceable layers are fields: `dense`, `conv`, `norm`, `dropout`, as far as it has them. The
    properties and methods below declare what other modules need to know, with defaults.
    """

    @property
    def experts(self) -> Callable[..., Any] | None:
        """A field of backbones with experts: factory of a mixture, `layers/moe/experts.py`."""
        return None

    @property
    def sizes(self) -> dict[str, Any]:
        """The fields that set the numbers of features, with their values for None."""
        return {}

    @property
    def width_unit(self) -> int:
        """The divisor of the field `width`."""
        return 1

    @property
    def input_layers(self) -> tuple[str, ...]:
        """Paths of layers whose input is x, or a flattened image; these are never grouped."""
        return ()

    @property
    def batch_dependent(self) -> bool:
        """Whether at prediction an example's features depend on the others of its batch."""
        return False

    @property
    def sharding(self) -> Rules:
        """Mesh axes of the trailing dimensions of parameters without a rule in the config."""
        return ()

    @property
    def monitors(self) -> tuple[Monitor, ...]:
        """The monitors of its collections in training."""
        return ()

    @nn.nowrap
    def patches(self, shape: Sequence[int]) -> tuple[int, int, int] | None:
        """The layout of its position embeddings, or None: see `vit.ViT.patches`."""
        return None


class Head(nn.Module):
    """Features [M or 1, B, D] -> Latent [M or 1, B, K], called as `head(phi, train=...)`."""

    @property
    def posterior(self) -> Posterior | None:
        """The posterior of its last layer, if it has one."""
        return None

    @property
    def affine(self) -> str | None:
        """The submodule whose kernel and bias map features to the mean, if the mean is affine."""
        return None


class Network(nn.Module):
    """x [B, ...] -> Latent [M, B, K], called as `network(x, train=...)`; made by ensembles."""

    backbone: Backbone
    head: Head

    @property
    def variational(self) -> bool:
        """Whether the parameters define a posterior, whose KL to a prior is in the loss."""
        return False

    @property
    def frozen(self) -> tuple[str, ...]:
        """The parts, such as 'backbone', whose parameters keep the values that they begin with.

        They are then in the collection 'frozen', and training changes no collection of theirs.
        """
        return ()

    @property
    def mixes_examples(self) -> bool:
        """Whether in training a row of features is not that of one example, as with MIMO."""
        return False


class Model(NamedTuple):
    """One network and its likelihood, as pure functions of the parameters.

    The fields after `features` are declarations of the network, see `Backbone`, `Head` and
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
    affine: str | None = None
    variational: bool = False
    # params, collections, x, key, weight=0 -> phi [M or 1, B, D] in training, latent, collections,
    # auxiliary loss []; the gradient of the head with respect to phi has the factor `weight`
    embed: Callable[..., tuple[jax.Array, Latent, Collections, jax.Array]] | None = None
    # mean and std [H, W, C] by which images in [0, 1] were normalised; None if that is unknown
    pixels: tuple[Any, Any] | None = None


class Samples(flax.struct.PyTreeNode):
    """S parameter sets of each particle, over which predictions average instead of the last one."""

    params: Params  # [P, S, ...]
    collections: Collections  # [P, S, ...]
    taken: jax.Array  # [P, S], bool; an empty slot predicts with the particle's current parameters


class State(flax.struct.PyTreeNode):
    """The contents of a checkpoint. Every leaf except `step` leads with P."""

    step: jax.Array  # []
    key: jax.Array  # [P], one typed key for each particle, so that a particle is a slice
    params: Params  # [P, ...]
    collections: Collections  # [P, ...]
    opt_state: Any  # [P, ...], optax's; () after training
    samples: Samples | None = None
    hyper: dict[str, jax.Array] | None = None  # name -> [P], hyper-parameters that differ
    slow: Any = None  # [P, ...], the objective's slow copies of parameters


class Inference(NamedTuple):
    """Inference of parameters from data: (init, update) as in optax, and predict.

    `separable` means that `update(state, batch)` of a slice of the particles is the slice of
    `update(state, batch)`; only then may particles be looped over or sharded without communication.
    With `own_examples` the batch, whose arrays then lead with P, is sliced too.
    """

    init: Callable[[jax.Array, jax.Array], State]  # key, x [B, ...]
    update: Callable[[State, Batch], tuple[State, Metrics]]
    # state, x [B, ...], mask=None -> [P M, B, K]; examples where mask [B] is False are padding
    # (`uncertainty/layers/moe/mask.py`)
    predict: Callable[..., Latent]
    separable: bool = False
    own_examples: bool = False
    # Initialises again what is derived from a state's parameters; call it after replacing them.
    restart: Callable[[State], State] = lambda state: state
    posterior: bool = False  # particles approximate a posterior together
    likelihood: Likelihood | None = None  # of its model: what labels may be


class Own(NamedTuple):
    """A particle's values for its objective, besides its network."""

    params: Params = None  # the objective's own
    slow: Any = None  # its slow copies
    hyper: dict[str, jax.Array] = {}  # name -> [], those in which particles differ
    step: jax.Array | int = 0


class Aux(NamedTuple):
    """The auxiliary outputs of an objective's loss."""

    collections: Collections
    nll: jax.Array | None = None  # [M, B]; None without labels
    metrics: Metrics = {}  # scalars, by their names in the record
    auxiliary: jax.Array | float = 0.0  # the network's auxiliary losses, to be added


class Together(NamedTuple):
    """A loss that N functions have together, by their predictions for the same inputs.

    The functions are the M members of a network, each of which has 1 / M of the likelihood's loss;
    or, with direction 'together', those of all particles, N = P M, and then each particle follows
    the gradient of its own loss plus P times this one. So a weight means the same in both, and for
    any P.
    """

    # likelihood, latent of the functions [N, B, K], key, step -> loss [], metrics []
    loss: Callable[[Likelihood, Latent, jax.Array, jax.Array | int], tuple[jax.Array, Metrics]]
    stream: str | None = None  # of the batch, with the inputs; None for the batch's own
    # Particle p is trained in steps [p, p + 1) x steps_each, the last one from then on too, while
    # all others stay as they are; 0 trains all at once.
    steps_each: int = 0


class Objective(NamedTuple):
    """The loss of one particle, apart from its prior and its network's auxiliary losses.

    It is the likelihood, the mean of nll [M, B], unless one of these three is given:

      inputs the likelihood at other inputs: model, params, collections, batch, key, own -> the
      batch with this particle's inputs, constants in the gradient. For all directions.
      latents  another loss of the latents: likelihood, latent, batch, key, own -> per example
               [M, B]. For all directions.
      loss any other loss: model, params, collections, batch, key, own -> loss [], Aux. For
      directions that need no latents.

    What functions have `together` is added to it, for directions in weight space.

    `own` is an `Own`. The objective may have its own parameters, which are trained with the
    network's and stored beside them as `objective`, and slow copies of parameters, which are stored
    but not trained. All functions are pure, and for one particle.
    """

    name: str = "likelihood"
    inputs: Callable[..., Batch] | None = None
    latents: Callable[..., jax.Array] | None = None
    loss: Callable[..., tuple[jax.Array, Aux]] | None = None
    # key, model, params, collections, x [B, ...] -> its own parameters
    init: Callable[..., Params] | None = None
    start: Callable[[Params, Params], Any] | None = None  # params, its own -> slow copies
    # slow copies, params, its own, step -> slow copies; called after each step with new parameters
    follow: Callable[[Any, Params, Params, jax.Array], Any] | None = None
    reads: tuple[str, ...] = ()  # which of `own.hyper` (`inference/hyper.py`)
    together: Together | None = None
    whole: bool = False  # it compares the examples of a batch, which has to be in one part


LIKELIHOOD = Objective()


class Direction(NamedTuple):
    """The direction in which particles move; the optimiser uses it as their gradients."""

    # model, state, batch, keys [P] -> gradients, collections, metrics, all leading with P
    update: Callable[[Model, State, Batch, jax.Array], tuple[Params, Collections, Metrics]]
    separable: bool = False  # particles do not interact
    # params, standard normal noise -> the noise of its diffusion, both [P, ...]: for samplers
    diffusion: Callable[[Params, Params], Params] | None = None
    posterior: bool = False  # particles approximate a posterior together
    # step, P -> whether each particle is trained, [P]; None for all of them
    active: Callable[[jax.Array, int], jax.Array] | None = None


class Stage(NamedTuple):
    """A step after training that extends a trained State.

    Intermediate values are in its `carry`, a tree whose leaves lead with P (or are scalars); the
    state can predict at any time. `begin` and `finish` get an example batch `x` [B, ...] for its
    shape. All three are pure.

    Exactly one of `steps` and `passes` is positive. In a pass `update` gets every example of `data`
    once and in order, and the result does not depend on how they are split into batches; or, with
    `shuffled`, in a random order, and the result is like that of other batches. `steps` counts
    batches of training, shuffled and augmented; the metrics are then those of `Inference.update`.
    """

    begin: Callable[[State, jax.Array], Any]  # -> carry
    update: Callable[[State, Any, Batch], tuple[State, Any, Metrics]]
    finish: Callable[[State, Any, jax.Array], State]
    steps: int = 0
    passes: int = 0
    data: str = "train"  # or 'validation'
    shuffled: bool = False  # whether a pass is in a random order, the same for each run
    num_examples: int | None = None  # that `data` have to have; None for any number
    separable: bool = True  # whether it acts on each particle independently
    learning_rate: Callable[[int], jax.Array | float] | None = None  # of a step


class Kernel(NamedTuple):
    """A kernel between P particles z_i, by their inner products alone.

    `matrices(inner [P, P])` gives the Gram matrix K and the matrix F [P, P] with
    sum_j grad_{z_j} k(z_j, z_i) = sum_j F_ij z_j, so that the only operations on z are two matrix
    products, K @ scores + F @ z.

    A kernel phi(a) . phi(b) may have `features`, the elementwise map phi that is applied before
    inner products; F is then that of phi, P I.
    """

    matrices: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
    stationary: bool  # k(a, b) = k(a - b): z may be centred first for accuracy
    features: Callable[[jax.Array], jax.Array] | None = None
    proportional: bool = False  # F = diag(d) - c K: then K @ (scores - c z) + d z is one product


class Prior(NamedTuple):
    """p(theta) of one particle."""

    potential: Callable[[Params], jax.Array]  # -log p(theta) up to a constant, in nats
    sample: Callable[[jax.Array, Params], Params]  # key, parameters for their shapes -> a draw


class Target(NamedTuple):
    """The posterior of one particle, p(theta | D) ~ (p(D | theta) p(theta))^(1 / temperature).

    Everything is per example: the gradient of -1/N log p(D, theta) is that of the mean nll plus
    that of `potential`, and forces and noise have the factor temperature / N. So tempering the
    likelihood alone, p(D | theta)^(1 / t), replaces N by N / t. A network's auxiliary losses, such
    as those that balance experts, are part of the target: a factor exp(-N loss).
    """

    prior: Prior | None = None
    num_examples: int | None = None
    temperature: float = 1.0  # 1 is Bayes; below 1 is a 'cold' posterior
    likelihood_temperature: float = 1.0  # t

    def potential(self, params: Params, scale: jax.Array | float = 1.0) -> jax.Array | float:
        """-1/N log p(theta) of the prior with `scale` times its scale; 0 without a prior."""
        if self.prior is None:
            return 0.0
        return self.prior.potential(jax.tree.map(lambda w: w / scale, params)) / self.N()

    def scale(self) -> float:
        """temperature / N.

        Raises:
          ValueError: N is unknown.
        """
        return self.temperature / self.N()

    def N(self) -> float:
        """The effective number of examples of the tempered likelihood, N / t.

        Raises:
          ValueError: N is unknown.
        """
        if self.num_examples is None:
            raise ValueError("num_examples: a posterior needs the size of the data set")
        return self.num_examples / self.likelihood_temperature
