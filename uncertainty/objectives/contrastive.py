"""Self-supervision: views of an image agree, and a symmetry of images is ignored or predicted."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from uncertainty import contrast as losses
from uncertainty import views as augmentations
from uncertainty.keys import Use, fold
from uncertainty.layers.norm import LayerNorm
from uncertainty.layers.projector import Projector
from uncertainty.symmetries import Symmetry, rotations
from uncertainty.types import Aux, Batch, Collections, Latent, Model, Objective, Own, Params

LOSSES = ("info_nce", "nt_xent", "supervised")
PREDICTOR = functools.partial(Projector, norm=LayerNorm)
View = augmentations.View


def contrastive(
    loss: str = "info_nce",
    temperature: float = 0.2,
    views: Sequence[Any] | None = None,
    entries: Sequence[str] = ("x",),
    compared: int = 2,
    symmetry: str | Callable[..., Any] = rotations,
    contrast: float | None = 1.0,
    invariance: float | None = None,
    equivariance: float | None = None,
    elements: int | None = None,
    predicted: Sequence[Any] | None = None,
    supervision: float = 0.0,
    projector: Callable[..., nn.Module] = Projector,
    predictor: Callable[..., nn.Module] = PREDICTOR,
) -> Objective:
    """loss = contrast L(p(phi(v_1)), p(phi(v_2))) + equivariance CE(h(phi(g v_3)), g) + nll.

    v_1, v_2, ... are random views of the same images, phi their features, L a loss of their
    embeddings (`uncertainty/contrast.py`), p the projector. The network's head is an online linear
    probe: it is trained by the nll of the labels, if there are some, on the features of v_1 as
    constants, so that a run of pre-training predicts classes, and another one may start from it.

    With `invariance` q each view is moved by an element g of a symmetry: with probability q one
    that is not the identity, all of these alike. With `equivariance` h predicts which element
    moved a view of its own, v_3: E-SSL (Dangovski et al. 2022, "Equivariant contrastive learning").

    Source: Loh et al. 2023, "Multi-symmetry ensembles", and their code: a baseline has neither, an
    invariant member q = 0.5, an equivariant one the weight 0.4.

    These fields, and `contrast`, are hyper-parameters of particles (`inference.hyper`), whose
    values replace them; particles whose weight is 0 compute the term but neither learn from it nor
    keep batch statistics of it.

    Differences from their code: views of one size are one batch for normalisation; the order of
    the four changes of colour is drawn once for a batch. The default predictor ends in an affine
    map to G logits after its last normalisation. By default the predicted view is made as the first
    is; theirs is a crop of 5 to 14 % of the area, 3/7 as large, and blurred with probability .1.

    Metrics: `contrast` is L, `positive` the mean cosine of positive pairs, `retrieval` the share of
    embeddings whose nearest candidate is a positive; `element_loss` and `element_accuracy`.

    Args:
      loss: 'info_nce' (negatives are of the other view), 'nt_xent' (SimCLR), or 'supervised',
        where examples of one class are positives.
      temperature: of the cosines.
      views: of each view its augmentations (`uncertainty/views.py`), in order; None for the two of
        BYOL in the size of the images. A view may be smaller than others (multi-crop).
      entries: of the batch: the images that views are made of, or one for each view. With
        `views=()` they are views as they are, made on the host by `data.augment`.
      compared: how many views, the first ones, 'info_nce' compares with all others.
      symmetry: one of `uncertainty/symmetries.py`.
      contrast: weight of L; None leaves it out.
      invariance: q; None for 0, and no hyper-parameter.
      equivariance: weight of the prediction; None leaves it out, and its predictor.
      elements: how many elements of the symmetry move each v_3, drawn without replacement; None for
        all of them.
      predicted: augmentations of v_3, a view of the first entry; None for those of v_1, drawn anew.
      supervision: factor of the nll's gradient with respect to the features; 1 trains the network
        by its labels too, with `contrast=None` by these alone and by the symmetry.
      projector, predictor: factories of p and of the hidden layers of h, features
        [M or 1, B, D] -> [M or 1, B, D'], called with `train=True`.

    Raises:
      ValueError: a value out of range or without use, or terms that train no features; when used,
        a batch without the entries or labels that are needed, or of one example; a network that
        mixes examples; changes of colour of images whose normalisation is unknown.
    """
    _check(
        loss, temperature, views, entries, compared, contrast, invariance, equivariance, elements,
        supervision,
    )  # fmt: skip
    pipelines = None if views is None else tuple(map(_view("views"), views))
    of_predicted = None if predicted is None else _view("predicted")(predicted)
    moves = symmetry() if callable(symmetry) and not isinstance(symmetry, Symmetry) else symmetry
    if not isinstance(moves, Symmetry):
        raise ValueError(
            f"symmetry: {moves!r}; a function of uncertainty/symmetries.py, or one of your own "
            "that returns a Symmetry"
        )
    G = moves.size
    if elements is not None and elements > G:
        raise ValueError(f"elements: {elements}; {moves.name!r} has {G}")

    def modules() -> dict[str, nn.Module]:
        own: dict[str, nn.Module] = {}
        if contrast is not None:
            own["projector"] = projector()
        if equivariance is not None:
            own["predictor"] = _Predictor(predictor, G)
        return own

    def init(
        key: jax.Array, model: Model, params: Params, collections: Collections, x: jax.Array
    ) -> Params:
        embed = _embedding(model)
        phi = jax.eval_shape(lambda: embed(params, collections, x, key)[0])
        phi = jnp.zeros(phi.shape, phi.dtype)
        return {
            name: module.init(jax.random.fold_in(key, i), phi, train=True)["params"]
            for i, (name, module) in enumerate(modules().items())
        }

    def run(name: str, own: Own, phi: jax.Array) -> jax.Array:
        module, params = modules()[name], own.params[name]
        return module.apply({"params": params}, phi, train=True, mutable=["batch_stats"])[0]

    def total(
        model: Model,
        params: Params,
        collections: Collections,
        batch: Batch,
        key: jax.Array,
        own: Own,
    ) -> tuple[jax.Array, Aux]:
        embed = _embedding(model)
        sources = [_entry(batch, name) for name in entries]
        chosen = pipelines
        if chosen is None:
            chosen = augmentations.byol(*augmentations.check_images(sources[0])[1:3])
        chosen = chosen or ((),) * len(sources)
        weights = {
            name: own.hyper.get(name, value)
            for name, value in dict(
                contrast=contrast, invariance=invariance, equivariance=equivariance
            ).items()
            if value is not None
        }
        y, B = batch.get("y"), len(sources[0])
        if B < 2 and contrast is not None:
            raise ValueError("objective: 'contrastive' compares examples, but the batch has one")
        inverted = [] if not moves.in_units else [f"symmetry {moves.name!r}"]
        inverted *= invariance is not None or equivariance is not None
        units, normalised = _pixels(model, [*chosen, of_predicted or ()], inverted)

        def seen(view: View, x: jax.Array, use: jax.Array | int) -> jax.Array:
            return augmentations.apply(view, units(x), fold(key, use))

        images = []
        for i, view in enumerate(chosen):
            x = seen(view, sources[i % len(sources)], Use.VIEWS + i)
            if "invariance" in weights:
                k = _random_elements(fold(key, Use.MOVES + i), weights["invariance"], B, G)
                x = moves.each(x, k)
            images.append(normalised(x))

        embeddings: dict[int, jax.Array] = {}  # of view i, [M or 1, B, D']
        latent, auxiliary = None, []
        for j, (indices, several) in enumerate(_by_shape(images)):
            n = len(several)
            # Interleaved, so that devices which share a batch keep their examples.
            x = jnp.stack(several, axis=1).reshape(B * n, *several[0].shape[1:])
            phi, u, collections, extra = embed(
                params, collections, x, fold(key, Use.SIZES + j), supervision
            )
            auxiliary.append(extra)
            latent = _every(n, u) if latent is None else latent
            if contrast is not None:
                z = run("projector", own, phi)
                embeddings |= {i: z[:, k::n] for k, i in enumerate(indices)}

        value, nll = jnp.zeros(()), None
        metrics: dict[str, jax.Array] = {}
        if y is not None:
            assert latent is not None
            nll = model.likelihood.nll(latent, y, jax.random.split(key)[1])
            value += jnp.mean(nll)
        elif supervision:
            raise ValueError("objective: 'contrastive' with supervision needs labels, an entry 'y'")
        if "contrast" in weights:
            z = jnp.stack([embeddings[i] for i in range(len(images))], axis=1)  # [M, V, B, D']
            out = jax.vmap(_loss(loss, temperature, compared, y))(z)
            out = jax.tree.map(jnp.mean, out)
            value += weights["contrast"] * out.loss
            metrics |= dict(contrast=out.loss, positive=out.positive, retrieval=out.retrieval)
        if "equivariance" in weights:
            weight = weights["equivariance"]
            view = of_predicted if of_predicted is not None else chosen[0]
            x = seen(view, sources[0], Use.PREDICTED)
            if elements is None:
                k = jnp.broadcast_to(jnp.arange(G), (B, G))
                moved = moves.all(x)
            else:
                keys = jax.random.split(fold(key, Use.ELEMENTS), B)
                k = jax.vmap(lambda key: jax.random.permutation(key, G)[:elements])(keys)
                moved = moves.each(x, k)
            moved = normalised(moved.reshape(-1, *moved.shape[2:]))
            phi, _, changed, extra = embed(params, collections, moved, fold(key, Use.PREDICTION))
            log_p = jax.nn.log_softmax(run("predictor", own, phi))  # [M or 1, B N, G]
            k = k.reshape(-1)
            of_element = jnp.take_along_axis(log_p, k[None, :, None], axis=-1)
            element_loss = -jnp.mean(of_element)
            value += weight * element_loss
            metrics |= dict(
                element_loss=element_loss,
                element_accuracy=jnp.mean(jnp.argmax(log_p, axis=-1) == k, dtype=log_p.dtype),
            )
            learns = jnp.asarray(weight) > 0
            collections = jax.tree.map(
                lambda new, old: jnp.where(learns, new, old), changed, collections
            )
            auxiliary.append(jnp.where(learns, extra, 0))
        aux = Aux(collections, nll, metrics, sum(auxiliary, start=jnp.zeros(())) / len(auxiliary))
        return value, aux

    terms = dict(contrast=contrast, invariance=invariance, equivariance=equivariance)
    reads = tuple(name for name, value in terms.items() if value is not None)
    has_own = contrast is not None or equivariance is not None
    return Objective(
        "contrastive", loss=total, init=init if has_own else None, reads=reads, whole=True
    )


class _Predictor(nn.Module):
    """Features [M or 1, B, D] -> logits [M or 1, B, G]."""

    hidden: Callable[..., nn.Module]
    elements: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return nn.Dense(self.elements, name="logits")(self.hidden(name="hidden")(x, train=train))


def _loss(
    name: str, temperature: float, compared: int, y: jax.Array | None
) -> Callable[[jax.Array], losses.Contrast]:
    """The loss of embeddings [V, B, D]."""
    if name == "info_nce":
        return lambda z: losses.info_nce(z, temperature, compared=compared)
    if name == "nt_xent":
        return lambda z: losses.nt_xent(z, temperature)
    if y is None or y.ndim != 1:
        raise ValueError("objective: loss 'supervised' needs labels of classes, an entry 'y' [B]")
    return lambda z: losses.supervised(z, y, temperature)


def _random_elements(key: jax.Array, q: jax.Array | float, B: int, G: int) -> jax.Array:
    """Elements [B]: with probability q one of 1, ..., G - 1, else 0."""
    key_whether, key_which = jax.random.split(key)
    which = jax.random.randint(key_which, (B,), 1, G)
    return jnp.where(jax.random.uniform(key_whether, (B,)) < q, which, 0)


def _by_shape(images: Sequence[jax.Array]) -> list[tuple[list[int], list[jax.Array]]]:
    """Indices and views of each shape, in the order of the first of each."""
    shapes = list(dict.fromkeys(x.shape for x in images))
    groups = [[i for i, x in enumerate(images) if x.shape == shape] for shape in shapes]
    return [(group, [images[i] for i in group]) for group in groups]


def _every(n: int, latent: Latent) -> Latent:
    """The latents of every n-th example."""
    each = jax.tree.map(lambda a: a[:, ::n], latent.replace(projection=None))
    return each.replace(projection=latent.projection)  # of no example


def _pixels(
    model: Model, views: Sequence[View], others: Sequence[str]
) -> tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]]:
    """From normalised images to those in [0, 1], and back."""
    if model.pixels is None:
        names = [*others, *(name for view in views for name in augmentations.needs_units(view))]
        if names:
            raise ValueError(
                f"objective: {', '.join(dict.fromkeys(names))} of `contrastive` need images in "
                "[0, 1], but how these were normalised is unknown; images of a declared range "
                "are needed, and in Python Model.pixels"
            )
        return lambda x: x, lambda x: x
    mean, std = (jnp.asarray(a) for a in model.pixels)

    def units(x: jax.Array) -> jax.Array:
        return x * std + mean

    def normalised(x: jax.Array) -> jax.Array:
        try:
            return (x - mean) / std
        except (TypeError, ValueError):
            raise ValueError(
                f"objective: views of {x.shape[1:]}, but mean and std of the images differ "
                f"between pixels, {mean.shape}; normalise by channels"
            ) from None

    return units, normalised


def _embedding(model: Model) -> Callable[..., tuple[jax.Array, Latent, Collections, jax.Array]]:
    if model.embed is None:
        raise ValueError(
            "objective: 'contrastive' needs features of single examples, which this network does "
            "not have in training"
        )
    return model.embed


def _entry(batch: Batch, name: str) -> jax.Array:
    arrays = sorted(key for key, value in batch.items() if not isinstance(value, Mapping))
    if name not in arrays:
        raise ValueError(
            f"objective.entries: {name!r} is no entry of the batch, which has "
            + ", ".join(map(repr, arrays))
        )
    return batch[name]


def _view(field: str) -> Callable[[Any], View]:
    def checked(view: Any) -> View:
        if isinstance(view, str) or not isinstance(view, Sequence) or not all(map(callable, view)):
            raise ValueError(
                f"{field}: {view!r}; a view is a list of augmentations, such as "
                "[{'name': 'crop'}, {'name': 'flip'}]"
            )
        return tuple(view)

    return checked


def _check(
    loss: str,
    temperature: float,
    views: Sequence[Any] | None,
    entries: Sequence[str],
    compared: int,
    contrast: float | None,
    invariance: float | None,
    equivariance: float | None,
    elements: int | None,
    supervision: float,
) -> None:
    """Raises ValueError for fields that `contrastive` refuses."""
    if loss not in LOSSES:
        raise ValueError(f"loss: {loss!r}; one of {', '.join(map(repr, LOSSES))}")
    if not temperature > 0:
        raise ValueError(f"temperature: {temperature}; a positive number")
    if isinstance(entries, str) or not len(entries):
        raise ValueError(f"entries: {entries!r}; a list such as ['x']")
    number = 2 if views is None else len(views) or len(entries)
    if len(entries) not in (1, number):
        raise ValueError(f"entries: {len(entries)} for {number} views; one, or one for each view")
    least = 2 if contrast is not None and loss != "supervised" else 1
    if number < least:
        raise ValueError(f"views: {number}; at least {least}")
    if compared < 1:
        raise ValueError(f"compared: {compared}; at least 1")
    for field, value in dict(contrast=contrast, equivariance=equivariance).items():
        if value is not None and not value >= 0:
            raise ValueError(f"{field}: {value}; at least 0, or None")
    if invariance is not None and not 0 <= invariance <= 1:
        raise ValueError(f"invariance: {invariance}; a probability, from 0 to 1, or None")
    if elements is not None and elements < 1:
        raise ValueError(f"elements: {elements}; at least 1, or None for all")
    if elements is not None and equivariance is None:
        raise ValueError(f"elements: {elements}, but nothing predicts them; set equivariance")
    if not supervision >= 0:
        raise ValueError(f"supervision: {supervision}; at least 0")
    if contrast is None and equivariance is None and not supervision:
        raise ValueError("contrast: None, and no other term trains the features")
