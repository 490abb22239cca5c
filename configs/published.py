"""Published numbers for the tables, each with its source.

table -> row -> metric -> (value in the printed unit, source). Cells without a published number are
empty. Numbers on corrupted images are omitted: they are for CIFAR-10-C and ImageNet-C, which differ
from our corruptions (`experiments/data/corruptions.py`).
"""

from collections.abc import Callable

Row = dict[str, tuple[float, str]]
_METRICS = (
    "classification/nll",  # nats
    "classification/accuracy",  # %
    "calibration/ece",  # 15 bins of equal width
    "cost/parameters",  # millions
)


def _rows_of(source: str) -> Callable[..., Row]:
    def row(*values: float | None) -> Row:
        pairs = zip(_METRICS, values, strict=False)
        return {metric: (value, source) for metric, value in pairs if value is not None}

    return row


_lenet5 = _rows_of("google/uncertainty-baselines, baselines/mnist/README.md (LeNet5)")
_cifar = _rows_of("google/uncertainty-baselines, baselines/cifar/README.md (Wide ResNet 28-10)")
_vmoe = _rows_of("google-research/vmoe, docstrings of configs/vmoe_paper and configs/eee_paper")
_augreg = _rows_of("google-research/big_vision, docstring of configs/transfer.py (means of 5)")
_imagenet = _rows_of("google/uncertainty-baselines, baselines/imagenet/README.md (ResNet-50)")

PUBLISHED = {
    "mnist": {
        "Deterministic": _lenet5(0.037, 99.1),
        "Ensemble (10)": _lenet5(0.016, 99.4, 0.005),
        "Refined VI": _lenet5(0.034, 99.0, 0.010),
        "VI": _lenet5(0.048, 98.5, 0.010),
    },
    "fashion_mnist": {
        "Deterministic": _lenet5(0.321, 91.0),
        "Ensemble (10)": _lenet5(0.200, 93.2, 0.010),
        "Refined VI": _lenet5(0.259, 90.6, 0.011),
        "VI": _lenet5(0.292, 89.5, 0.011),
    },
    "cifar10": {
        "Deterministic": _cifar(0.159, 96.0, 0.0231, 36.5),
        "MC dropout (1)": _cifar(0.160, 95.9, 0.0241, 36.5),
        "MC dropout (30)": _cifar(0.145, 96.1, 0.019, 36.5),
        "SNGP": _cifar(0.134, 96.0, 0.007, 36.5),
        "SNGP, MC dropout (10)": _cifar(0.131, 95.9, 0.008, 36.5),
        "Ensemble (4)": _cifar(0.114, 96.6, 0.010, 146),
        "SNGP ensemble (4)": _cifar(0.109, 96.7, 0.005, 146),
        "BatchEnsemble (4)": _cifar(0.136, 96.3, 0.0177, 36.6),
        "MIMO (3)": _cifar(0.123, 96.4, 0.010, 36.5),
        "V-MoE-B/16, ImageNet-21k": _vmoe(None, 98.7),
        "ViT-B/32, ImageNet-21k": _augreg(None, 98.55),
    },
    "cifar100": {
        "Deterministic": _cifar(0.875, 79.8, 0.0857, 36.5),
        "MC dropout (1)": _cifar(0.830, 79.6, 0.0501, 36.5),
        "MC dropout (30)": _cifar(0.785, 80.7, 0.0487, 36.5),
        "Heteroscedastic": _cifar(0.833, 80.2, 0.059, 37),
        "SNGP": _cifar(0.805, 80.2, 0.020, 36.5),
        "SNGP, MC dropout (10)": _cifar(0.750, 79.6, 0.017, 36.5),
        "Ensemble (4)": _cifar(0.666, 82.7, 0.021, 146),
        "Heteroscedastic ensemble (4)": _cifar(0.671, 82.7, 0.026, 148),
        "SNGP ensemble (4)": _cifar(0.665, 81.9, 0.011, 146),
        "BatchEnsemble (4)": _cifar(0.690, 81.9, 0.0265, 36.6),
        "MIMO (3)": _cifar(0.690, 82.0, 0.022, 36.5),
        "E3-S/32 (1, 2), ImageNet": _vmoe(None, 81.31),
        "ViT-B/32, ImageNet-21k": _augreg(None, 91.35),
    },
    "imagenet": {
        "Deterministic": _imagenet(0.939, 76.2, 0.032, 25.6),
        "MC dropout (10)": _imagenet(0.919, 76.6, 0.026, 25.6),
        "Heteroscedastic": _imagenet(0.898, 77.5, 0.033, 58.4),
        "SNGP": _imagenet(0.931, 76.1, 0.013, 25.6),
        "Ensemble (4)": _imagenet(0.857, 77.9, 0.017, 102.4),
        "Heteroscedastic ensemble (4)": _imagenet(0.790, 79.5, 0.015, 233.6),
        "SNGP ensemble (4)": _imagenet(0.851, 78.1, 0.039, 102.4),
        "V-MoE-S/32": _vmoe(None, 73.1),
    },
}
