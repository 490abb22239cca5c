"""The scores of classes, collected set by set."""

from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.evaluators import calibration, classification, corruption, ood
from experiments.prediction import archive
from experiments.prediction.predictions import Summary, merged, summary
from experiments.runtime import keys
from experiments.scoring import calibrate
from experiments.scoring.parts import Part
from experiments.scoring.scored import Frame, Statistic, mean_of, name_of, rankings
from uncertainty.metrics import resampling
from uncertainty.metrics.classification import briers

RANKED = "entropy"  # the OOD score that gets intervals, beside those of one's own


class Collected:
    """Collects the scores of the sets of a file after a map."""

    def __init__(self, test: Part, apply: Callable[[Part], Part], bins: int, normalised: bool):
        self.apply, self.bins, self.normalised = apply, bins, normalised
        self.part = test
        self.frames = {archive.TEST: Frame(test.examples, test.y, test.group)}
        self.test = self.inside = self._summary(test)
        self.of_inside = archive.TEST
        self.statistics = self._of_test(apply(test))
        self.corrupted: list[tuple[str, str, Summary]] = []
        self.nlls: list[np.ndarray] = []
        self.others: list[tuple[str, Any]] = []

    def _summary(self, part: Part, scores: bool = True) -> Summary:
        part = self.apply(part)
        ends = np.cumsum(part.batches or (part.examples,))
        parts = []
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            s = slice(start, end)
            latents = [None if a is None else a[:, s] for a in (part.logits, part.epistemic)]
            y = None if part.y is None or part.name.startswith("ood/") else part.y[s]
            options = dict(bins=self.bins, scores=scores, normalised=self.normalised)
            parts.append(summary(part.log_p[:, s], y, *latents, **options))
        whole = merged(parts)
        return whole._replace(scores=whole.scores | dict(part.scores))

    def _of_test(self, test: Part) -> list[Statistic]:
        p = self.test
        ece = resampling.ece(p.confidence, p.correct, self.bins)
        aurc = resampling.aurc(p.confidence, p.correct)
        return [
            mean_of("classification/accuracy", p.correct),
            mean_of("classification/nll", -p.examples["log_p_label"].astype(np.float64)),
            mean_of("classification/brier", briers(test.log_p, test.y)),
            Statistic((archive.TEST,), lambda w: {"calibration/ece": ece(w)}),
            Statistic((archive.TEST,), lambda w: {"selective/aurc": aurc(w)}),
        ]

    def add(self, part: Part) -> None:
        """A further set: in-distribution, out of distribution, or corrupted."""
        kind, *names = keys.split(part.name)
        if kind == "corruption":
            self._corrupted(part, *names)
            return
        self.frames[part.name] = Frame(part.examples, part.y if kind != "ood" else None, part.group)
        if part.name == archive.INSIDE:
            self.inside, self.of_inside = self._summary(part), part.name
            return
        outside = self._summary(part)
        frames = self.of_inside, part.name
        chosen = (RANKED, *self.part.scores)
        self.statistics += rankings(frames, self.inside.scores, outside.scores, chosen)
        self.others += ood.measured(name_of(part.name), self.inside, outside)

    def _corrupted(self, part: Part, kind: str, severity: str) -> None:
        of = self._summary(part)
        self.corrupted.append((kind, severity, of._replace(examples={}, scores={})))
        if calibrate.same_examples(part, self.part):
            self.nlls.append(-of.examples["log_p_label"].astype(np.float64))

    def results(
        self,
    ) -> tuple[list[tuple[str, Any]], list[Statistic]]:
        """Numbers and arrays by name, and statistics."""
        p = self.test
        items = list(classification.measured(p))
        if len(p.correct) >= 2 * self.bins:  # which the debiased error needs
            log_p = self.apply(self.part).log_p
            items += calibration.measured(log_p, self.part.y, p.confidence, p.correct, self.bins)
        if self.part.x is not None:
            items.append(("test/x", self.part.x))
        items += self.others
        if self.of_inside != archive.TEST:  # what figures of OOD detection compare with
            of = self.inside.examples
            shown = [k for k in ("entropy", "mutual_information") if k in of]
            items += [(keys.join(self.of_inside, k), of[k]) for k in shown]
        statistics = self.statistics
        if self.corrupted:
            items += corruption.measured(self.corrupted)
            if len(self.nlls) == len(self.corrupted):
                statistics = statistics + self._of_corruption()
        return items, statistics

    def _of_corruption(self) -> list[Statistic]:
        """The means over sets of the same examples as the test set's."""
        correct = np.mean([of.correct for *_, of in self.corrupted], axis=0)
        gaps = [resampling.ece(of.confidence, of.correct, self.bins) for *_, of in self.corrupted]
        return [
            mean_of("corruption/accuracy", correct),
            mean_of("corruption/nll", np.mean(self.nlls, axis=0)),
            Statistic(
                (archive.TEST,),
                lambda w: {"corruption/ece": np.mean([gap(w) for gap in gaps], axis=0)},
            ),
        ]

    def notes(self) -> list[str]:
        """What makes a number infinite, and an accuracy that is worse than guessing."""
        log_p, lines = self.test.examples["log_p_label"], []
        B, guess = len(log_p), 1 / self.part.shape[2]
        accuracy = float(self.test.correct.mean())
        if accuracy < guess - 3 * np.sqrt(guess * (1 - guess) / B):
            lines.append(
                f"the accuracy, {accuracy:.1%}, is below that of guessing, {guess:.1%}: are the "
                "columns in the order of the labels 0, 1, ...?"
            )
        zeros = int(np.isneginf(log_p).sum())
        if not zeros:
            return lines
        finite = log_p[np.isfinite(log_p)]
        others = f"; over the others it is {-finite.mean(dtype=np.float64):.4f}" * bool(len(finite))
        return [
            *lines,
            f"the label has the probability 0 in {zeros:,} of {len(log_p):,} examples, so the NLL "
            f"is infinite{others} (--floor 1e-6 raises such probabilities)",
        ]
