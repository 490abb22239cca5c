"""Few-shot linear probes of a model's features on other data sets."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.data import labels
from experiments.evaluators import Evaluator, reads
from experiments.runtime import keys
from uncertainty.build import nearest
from uncertainty.metrics.few_shot import L2, best_l2, draw_shots, probe

if TYPE_CHECKING:
    from experiments.prediction.predictor import Predictor


def few_shot(
    sets: Mapping[str, Any],
    shots: Sequence[int] = (1, 5, 10, 25),
    draws: int = 5,
    choose: str = "held_out",
    held_out: int = 1_000,
    seed: int = 0,
) -> Evaluator:
    """Errors of ridge regression from features to classes, with `shots` examples of each class.

    Features are those of the backbone at prediction, concatenated over members and particles (once
    if members share them); the probe is `uncertainty/metrics/few_shot.py`.

    One l2 of 2^-10, ..., 2^19 is chosen for each number of shots: the one with the best mean rank
    over all sets and draws. The published protocol ranks by the accuracy on the test sets
    themselves, which with one set is no test any more. The default ranks by examples of the train
    split that no probe of that draw has seen.

    Yields `few_shot/<set>/<n>_shot_error`, means over draws; `few_shot/<n>_shot_error`, over sets
    too; `few_shot/error`, over all; and the chosen `few_shot/<n>_shot_log2_l2`.

    Args:
      sets: name -> dict(train=spec, test=spec), labelled images of any classes, of the shape of the
        training data.
      shots: examples of each class.
      draws: random draws of these examples; errors are means over them.
      choose: 'held_out', or 'test' for the published protocol.
      held_out: the most examples to choose l2 by.
      seed: of the draws.

    Raises:
      ValueError: numbers below 1, an unknown `choose`, or a set of another form or with too few
        examples.
    """
    _check(sets, shots, draws, choose, held_out)

    def run(predict: "Predictor") -> Iterator[tuple[str, Any]]:
        criteria, tested = ({n: {} for n in shots} for _ in range(2))  # shots -> (set, draw) -> [L]
        for name, spec in sets.items():
            x, y = predict.features(spec["train"])
            x_test, y_test = predict.features(spec["test"])
            for draw in range(draws):
                rng = np.random.default_rng([seed, draw])
                try:
                    examples = draw_shots(y, max(shots), rng)
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from None
                rest = rng.permutation(np.setdiff1d(np.arange(len(y)), examples))[:held_out]
                if choose == "held_out" and not len(rest):
                    raise ValueError(
                        f"{name}: no examples are left to choose l2 by; set choose='test'"
                    )
                for n in shots:
                    selected = examples[:, :n].ravel()
                    apart, test = probe(x[selected], y[selected], len(examples), [x[rest], x_test])
                    tested[n][name, draw] = (test == y_test).mean(1)
                    apart = (apart == y[rest]).mean(1) if choose == "held_out" else None
                    criteria[n][name, draw] = tested[n][name, draw] if apart is None else apart
        errors = {}
        for n in shots:
            i = best_l2(criteria[n])
            yield f"few_shot/{n}_shot_log2_l2", float(np.log2(L2[i]))
            for name in sets:
                errors[n, name] = 1 - float(np.mean([tested[n][name, d][i] for d in range(draws)]))
                yield keys.join("few_shot", name, f"{n}_shot_error"), errors[n, name]
            yield f"few_shot/{n}_shot_error", float(np.mean([errors[n, name] for name in sets]))
        yield "few_shot/error", float(np.mean(list(errors.values())))

    yields = {f"few_shot/{n}_shot_{kind}" for n in shots for kind in ("error", "log2_l2")}
    yields |= {keys.join("few_shot", name, f"{n}_shot_error") for name in sets for n in shots}
    read = tuple(
        one
        for name, spec in sets.items()
        for part in ("train", "test")
        for one in reads(f"sets.{name}.{part}", spec[part], labels.OWN, reported=part == "test")
    )
    return Evaluator(run, "classification", yields | {"few_shot/error"}, read)


def _check(
    sets: Mapping[str, Any], shots: Sequence[int], draws: int, choose: str, held_out: int
) -> None:
    """Raises ValueError for fields that `few_shot` refuses."""
    form = "name -> dict(train=..., test=...)"
    if not sets or not all(isinstance(spec, Mapping) for spec in sets.values()):
        raise ValueError(f"sets: {sets!r}; {form}")
    if not all(set(spec) == {"train", "test"} for spec in sets.values()):
        raise ValueError(f"sets: {dict(sets)}; {form}")
    if choose not in ("held_out", "test"):
        raise ValueError(f"choose: {choose!r}; {nearest(str(choose), ('held_out', 'test'))}")
    for field, value in dict(shots=min(shots, default=0), draws=draws, held_out=held_out).items():
        if value < 1:
            raise ValueError(f"{field}: {value}; at least 1")
