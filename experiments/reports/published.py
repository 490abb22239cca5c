"""Published numbers that the tables stand beside, each with its source.

table -> row -> metric -> (value in the unit it was printed in, source). What a source leaves out
is left out here, and its cell stays empty.
"""

LENET5 = "google/uncertainty-baselines, baselines/mnist/README.md (LeNet5)"


def _row(nll: float, accuracy: float, ece: float | None = None) -> dict[str, tuple[float, str]]:
    row = {"classification/nll": (nll, LENET5), "classification/accuracy": (accuracy, LENET5)}
    return row if ece is None else row | {"calibration/ece": (ece, LENET5)}


PUBLISHED = {
    "mnist": {
        "Deterministic": _row(0.037, 99.1),
        "Ensemble (10)": _row(0.016, 99.4, 0.005),
        "Refined VI": _row(0.034, 99.0, 0.010),
        "VI": _row(0.048, 98.5, 0.010),
    },
    "fashion_mnist": {
        "Deterministic": _row(0.321, 91.0),
        "Ensemble (10)": _row(0.200, 93.2, 0.010),
        "Refined VI": _row(0.259, 90.6, 0.011),
        "VI": _row(0.292, 89.5, 0.011),
    },
}
