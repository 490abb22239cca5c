"""What features and predictions keep of a symmetry of images, such as their rotation."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from experiments.data import labels
from experiments.data.source import Source
from experiments.evaluators import Data, Evaluator, reads
from experiments.evaluators.kinds import check as check_kinds
from experiments.runtime import keys
from uncertainty import specs
from uncertainty.metrics.few_shot import best_l2, probe
from uncertainty.metrics.neighbours import unit
from uncertainty.symmetries import Symmetry

if TYPE_CHECKING:
    from experiments.prediction.predictor import Predictor


def symmetry_probe(
    train: Data,
    data: Data,
    symmetry: str | dict[str, Any] = "rotations",
    examples: int = 2_000,
    held_out: float = 0.25,
    seed: int = 0,
    kinds: Sequence[str] = (),
) -> Evaluator:
    """A linear probe of which element of a symmetry moved an image, on frozen features.

    Every image is moved by all G elements. Ridge regression (`metrics/few_shot.py`) from the
    features of training images to the element is chosen by held-out ones, and tested on others.
    Equivariant features tell the element, invariant ones do not: chance is 1 / G.

    Yields, with the name of the symmetry, `symmetry/<name>/probe_accuracy`, the mean over members
    (those that share features count once), and the array `members` [M] of it; `cosine`, the mean
    over members, test images and elements but the identity of the cosine of phi(x) and phi(g x),
    both less the mean of all: 1 for invariant features; and `agreement`, the share of (x, g) whose
    most probable class is that of x, mean over members, in runs that learn classes. With `kinds`,
    `<kind>/probe_accuracy` and `<kind>/cosine` are means over the members of each kind.

    Args:
      train, data: images; no labels are read.
      symmetry: a name of `uncertainty/symmetries.py`, or a dict with one.
      examples: the most images of each set, drawn at random.
      held_out: the share of the training images that chooses l2.
      seed: of the draws.
      kinds: names of the particles' kinds, see the evaluator `kinds`.

    Raises:
      ValueError: no symmetry, fewer than 2 examples, a share outside (0, 1), wrong kinds; when run,
        images that the elements do not apply to.
    """
    moves = specs.make("symmetries", symmetry, "symmetry")
    if not isinstance(moves, Symmetry):
        raise ValueError(f"symmetry: {symmetry!r} returns a {type(moves).__name__}; a Symmetry")
    if examples < 2:
        raise ValueError(f"examples: {examples}; at least 2")
    if not 0 < held_out < 1:
        raise ValueError(f"held_out: {held_out}; a share, above 0 and below 1")
    if kinds:
        check_kinds(kinds, ())
    G = moves.size

    def run(predict: "Predictor") -> Iterator[tuple[str, Any]]:
        of_train, of_test = (
            [moved(images, moves, k) for k in range(G)]
            for images in (
                sample(predict.source(spec, labels.UNUSED), examples, seed)
                for spec in (train, data)
            )
        )
        phi = [predict.member_features(source)[0] for source in of_train]  # [G][M][N, D]
        phi_test = [predict.member_features(source)[0] for source in of_test]
        N, M = len(phi[0][0]), len(phi[0])
        apart = max(1, round(held_out * N))
        if apart >= N:
            raise ValueError(f"train: {N} examples; held_out={held_out} leaves none to fit")
        accuracy, cosine = [], []
        for m in range(M):
            fit, chosen = (
                np.concatenate([phi[k][m][part] for k in range(G)])
                for part in (slice(apart, None), slice(apart))
            )
            test = np.concatenate([phi_test[k][m] for k in range(G)])
            y, y_chosen, y_test = (
                np.repeat(np.arange(G), len(a) // G) for a in (fit, chosen, test)
            )
            of_chosen, of_tested = probe(fit, y, G, [chosen, test])
            i = best_l2({"held_out": (of_chosen == y_chosen).mean(1)})
            accuracy.append(float(np.mean(of_tested[i] == y_test)))
            centred = unit(test.astype(np.float64) - test.mean(0)).reshape(G, -1, test.shape[1])
            cosine.append(float(np.mean(np.sum(centred[1:] * centred[0], axis=-1))))
        name = moves.name
        yield keys.join("symmetry", name, "probe_accuracy"), float(np.mean(accuracy))
        yield keys.join("symmetry", name, "members"), np.asarray(accuracy)
        yield keys.join("symmetry", name, "cosine"), float(np.mean(cosine))
        particles = sum(len(of.state.key) for of in predict.runs)
        of = np.repeat([kinds[p % len(kinds)] for p in range(particles) if kinds], M // particles)
        for kind in dict.fromkeys(of.tolist()):
            at = of == kind
            for metric, values in dict(probe_accuracy=accuracy, cosine=cosine).items():
                mean = float(np.mean(np.asarray(values)[at]))
                yield keys.join("symmetry", name, kind, metric), mean
        if predict.reader.like.task != "classification":
            return
        classes = [predict.log_probs(source, labels.UNUSED).argmax(2) for source in of_test]
        agreement = np.mean([np.mean(moved == classes[0]) for moved in classes[1:]])
        yield keys.join("symmetry", name, "agreement"), float(agreement)

    def check(source: Source) -> None:
        if len(source.shape) != 3:
            raise ValueError(f"data: {source.name} has no images, which a symmetry moves")
        if moves.in_units and not source.in_unit_range:
            raise ValueError(f"symmetry: {moves.name!r} needs images of a declared range")

    numbers = ("probe_accuracy", "cosine", "agreement")
    yields = {keys.join("symmetry", moves.name, number) for number in numbers}
    yields |= {keys.join("symmetry", moves.name, kind, n) for kind in kinds for n in numbers[:2]}
    read = reads("train", train, labels.UNUSED, reported=False) + reads("data", data, labels.UNUSED)
    return Evaluator(run, None, yields, read, check)


def sample(source: Source, most: int, seed: int) -> Source:
    """At most so many examples of a source, drawn at random, without labels."""
    chosen = np.random.default_rng(seed).permutation(len(source))[:most]
    x = source.x[chosen] if source.in_memory else source.x.gather(chosen)["x"]
    part, before = source.with_entries(x=x), source.transform
    if before is None:
        return part
    return dataclasses.replace(part, transform=lambda x, indices: before(x, chosen[indices]))


def moved(source: Source, moves: Symmetry, k: int) -> Source:
    """The same examples, each moved by element k before it is normalised."""
    before = source.transform

    def transform(x: np.ndarray, indices: np.ndarray) -> np.ndarray:
        x = x if before is None else before(x, indices)
        return np.array(moves.elements[k](jnp.asarray(x)), np.float32)

    return dataclasses.replace(source, name=f"{source.name}, {moves.name} {k}", transform=transform)
