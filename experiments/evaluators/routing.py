"""Which classes go to which experts."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.evaluators import Data, Evaluator, reads
from uncertainty.layers.moe.monitor import balance, name_of

if TYPE_CHECKING:
    from experiments.prediction.predictor import Predictor


def routing(data: Data) -> Evaluator:
    """The share of each class's tokens that each expert processes, in every layer with experts.

    Yields for a layer, such as `routing/block01`, the arrays (P particles, M sets of E experts that
    a token chooses among: members with experts of their own, or members that share them)

      share   [P, M, K, E]  mean over a class's examples of the share of their tokens
      load    [P, M, E]     the same over all examples

    whose rows add up to (choices per token) (1 - dropped), and the metrics

      dropped             share of the choices that find no room (with expert choice, of the tokens
                          that no expert takes); not of soft routing
      load_max, load_min  load of the busiest and the least busy expert over the mean load: 1 in
                          balance, 0 an expert without tokens; extremes within a particle
      mutual_information  I(Y; e) = sum_{y,e} p(y, e) log(p(y, e) / (p(y) p(e))) in nats, where
                          p(y, e) is the part of all that the experts work on that is tokens of
                          class y with expert e

    as means over particles, the last one over members too. The mutual information is 0 if all
    classes use the experts equally, and at most log min(K, E). With N independent tokens, chance
    alone gives about (K - 1) (E - 1) / 2N; tokens of one example are not independent and count for
    less.

    Args:
      data: a source's spec.
    """

    def run(predict: "Predictor") -> Iterator[tuple[str, Any]]:
        source = predict.source(data)
        K, N = source.outputs, np.zeros(source.outputs)
        shares: dict[str, np.ndarray] = {}  # [P, M, K, E], sums over examples
        drops: dict[str, np.ndarray] = {}  # [P, M], likewise
        for y, sown in predict.sown(source, "routes"):
            classes = np.eye(K)[y]  # [B, K]
            N += classes.sum(0)
            for path, a in sown.items():
                layer, kind = name_of(path), path.rpartition("/")[2]
                if kind == "per_example":  # [P, ..., M, B, E]; what is beyond y fills up the batch
                    each = a.reshape(len(a), -1, *a.shape[-2:])[:, :, : len(y)]
                    sums = np.einsum("pmbe,bk->pmke", each, classes, optimize=True)
                    shares[layer] = shares.get(layer, 0) + sums
                else:  # dropped [P, ..., M, G, S], by groups of examples
                    T = a.shape[-2] * a.shape[-1] // predict.batch_size
                    each = a.reshape(len(a), -1, predict.batch_size, T)
                    drops[layer] = drops.get(layer, 0) + each[:, :, : len(y)].mean(3).sum(2)
        if not shares:
            raise ValueError("routing: the network has no experts; set backbone.experts")
        for layer, total in shares.items():
            share, mean = total / np.maximum(N, 1)[:, None], total.sum(2) / N.sum()
            dropped = drops[layer] / N.sum() if layer in drops else None
            yield f"routing/{layer}/share", share.astype(np.float32)
            yield f"routing/{layer}/load", mean.astype(np.float32)
            for key, value in balance(mean, dropped).items():
                yield f"routing/{layer}/{key}", value
            yield f"routing/{layer}/mutual_information", float(mutual_information(total).mean())

    names = {*balance(np.ones((1, 1)), np.ones(1)), "mutual_information"}
    yields = {f"routing/*/{name}" for name in names}  # the layers depend on the network
    return Evaluator(run, "classification", yields, reads("data", data))


def mutual_information(counts: np.ndarray) -> np.ndarray:
    """Mutual information [...], in nats, of joint counts [..., K, E]."""
    p = counts / np.maximum(counts.sum((-2, -1), keepdims=True), np.finfo(float).tiny)
    apart = p.sum(-1, keepdims=True) * p.sum(-2, keepdims=True)
    ratio = np.divide(p, apart, out=np.ones_like(p), where=p > 0)
    return np.sum(p * np.log(ratio), axis=(-2, -1))
