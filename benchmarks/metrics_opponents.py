"""The other libraries' side of `benchmarks/metrics.py`: runs one metric per line of standard input.

Needs torch, torchmetrics, torch-uncertainty and pytorch-ood, but not this project. A line is
`{"run": row, "dtype": "float32", "threads": 2}`; the answer is
`{"wall": ..., "cpu": ..., "given": wall without p = exp(log_p), "value": ...}`.
"""

import importlib.util
import json
import logging
import pathlib
import sys
import time
import types
import warnings
from importlib.metadata import version

import numpy as np
import torch

PACKAGES = ("torch", "torchmetrics", "torch-uncertainty", "pytorch-ood")
LOGARITHMS = {"p": "log_p", "members": "log_members"}  # inputs to be exponentiated


def bare(name: str) -> None:
    """Makes a package's submodules importable without running its __init__.

    torch-uncertainty and pytorch-ood import torchvision for their data sets and models; their
    metrics do not need it, and it has no build for every torch.
    """
    module = types.ModuleType(name)
    if "." in name:
        parent, _, child = name.rpartition(".")
        module.__path__ = [str(pathlib.Path(sys.modules[parent].__path__[0]) / child)]
    else:
        module.__path__ = list(importlib.util.find_spec(name).submodule_search_locations)
    sys.modules[name] = module


def rows(bins: int) -> dict:
    """Row -> (names of its arrays, function)."""
    import torchmetrics.functional.classification as tm

    for name in ("torch_uncertainty", "torch_uncertainty.metrics", "pytorch_ood"):
        bare(name)
    bare("pytorch_ood.utils")
    import pytorch_ood.metrics as po
    import torch_uncertainty.metrics.classification as tu

    def updated(metric, *arrays):
        metric.update(*arrays)
        return metric.compute()

    def everything(p, y):
        K = p.shape[1]
        metrics = (
            tu.CategoricalNLL(),
            tu.BrierScore(num_classes=K),
            tu.CalibrationError(
                task="multiclass", num_classes=K, num_bins=bins, validate_args=False
            ),
            tu.AdaptiveCalibrationError(
                task="multiclass", num_classes=K, num_bins=bins, validate_args=False
            ),
            tu.ClasswiseCalibrationError(num_classes=K, num_bins=bins),
            tu.AURC(),
        )
        accuracy = tm.multiclass_accuracy(p, y, K, average="micro", validate_args=False)
        values = [updated(metric, p, y) for metric in metrics]
        return [accuracy, *values, updated(tu.Entropy(), p)]

    def ood(s, y):
        metrics = (po.AUROC(), po.AUPR("ood"), po.AUPR("id"), po.FPRAtTPR(0.95))
        result = po.MetricCollection(metrics).update(scores=s, labels=-y).compute()
        return list(result.values())

    def classes(metric, **options):
        return lambda p, y: updated(metric(num_classes=p.shape[1], **options), p, y)

    task = {"task": "multiclass", "num_bins": bins, "validate_args": False}
    labelled, ensemble, scored = ("p", "labels"), ("members",), ("scores", "is_out")
    return {
        "accuracy | torchmetrics": (
            ("log_p", "labels"),
            lambda p, y: tm.multiclass_accuracy(
                p, y, p.shape[1], average="micro", validate_args=False
            ),
        ),
        "ece | torchmetrics": (
            labelled,
            lambda p, y: tm.multiclass_calibration_error(
                p, y, p.shape[1], n_bins=bins, validate_args=False
            ),
        ),
        "auroc | torchmetrics": (scored, lambda s, y: tm.binary_auroc(s, y, validate_args=False)),
        "aupr_out | torchmetrics": (
            scored,
            lambda s, y: tm.binary_average_precision(s, y, validate_args=False),
        ),
        "nll | torch-uncertainty": (labelled, lambda p, y: updated(tu.CategoricalNLL(), p, y)),
        "brier | torch-uncertainty": (labelled, classes(tu.BrierScore)),
        "ece | torch-uncertainty": (labelled, classes(tu.CalibrationError, **task)),
        "ece_mass | torch-uncertainty": (labelled, classes(tu.AdaptiveCalibrationError, **task)),
        "ece_classwise | torch-uncertainty": (
            labelled,
            classes(tu.ClasswiseCalibrationError, num_bins=bins),
        ),
        "aurc | torch-uncertainty": (labelled, lambda p, y: updated(tu.AURC(), p, y)),
        "entropy | torch-uncertainty": (("p",), lambda p: updated(tu.Entropy(), p)),
        "evaluate | torch-uncertainty": (labelled, everything),
        "mutual_information | torch-uncertainty": (
            ensemble,
            lambda p: updated(tu.MutualInformation(), p),
        ),
        "disagreement | torch-uncertainty": (ensemble, lambda p: updated(tu.Disagreement(), p)),
        "fpr95 | torch-uncertainty": (scored, lambda s, y: updated(tu.FPR95(pos_label=1), s, y)),
        "auroc | pytorch-ood": (scored, lambda s, y: po.functional.auroc(s, -y)),
        "fpr95 | pytorch-ood": (scored, lambda s, y: po.functional.fpr_at_tpr(s, -y)),
        "ranking | pytorch-ood": (scored, ood),
        "aurc | pytorch-ood": (("confidence", "correct"), lambda c, r: 1 - po.aurra(c, r)),
    }


def main(folder: pathlib.Path, bins: int) -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    table = rows(bins)
    about = {name: version(name) for name in PACKAGES} | {"numpy": np.__version__}
    print(json.dumps({"rows": list(table), "versions": about}), flush=True)
    loaded = {}

    def array(name, dtype):
        if (name, dtype) not in loaded:
            x = torch.from_numpy(np.load(folder / f"{name}.npy"))
            loaded[name, dtype] = x.to(getattr(torch, dtype)) if x.is_floating_point() else x
        return loaded[name, dtype]

    for line in sys.stdin:
        job = json.loads(line)
        names, function = table[job["run"]]
        arrays = [array(LOGARITHMS.get(name, name), job["dtype"]) for name in names]
        torch.set_num_threads(job["threads"])
        with torch.no_grad():
            used, began = time.process_time(), time.perf_counter()
            if names[0] in LOGARITHMS:
                arrays[0] = arrays[0].exp()
            after_exp = time.perf_counter()
            value = function(*arrays)
            ended = time.perf_counter()
            used = time.process_time() - used
        value = [float(v) for v in value] if isinstance(value, list) else float(value)
        answer = {"wall": ended - began, "cpu": used, "given": ended - after_exp, "value": value}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
