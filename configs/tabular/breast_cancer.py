"""A deep ensemble on scikit-learn's tabular sets for classification.

Data: 569 tumours of two classes (`dataset=wine`, `iris`: three classes), standardised by the
training part; noise added to the features is the corruption. Settings are ours; nothing is
published for this split.
Hardware and time: 2 CPU cores, about ten seconds.
Command: python -m experiments.train --config configs/tabular/breast_cancer.py --workdir runs/cancer
"""

from ml_collections import ConfigDict

from experiments.experiment.base import base, parse_arg, shrink

CLASSES = {"breast_cancer": 2, "wine": 3, "iris": 3}


def get_config(arg: str | None = None) -> ConfigDict:
    """`dataset`: breast_cancer, wine or iris; `size`: networks in the ensemble."""
    arg = parse_arg(arg, dataset=tuple(CLASSES), size=5)
    config = base()
    test = dict(split="test")

    config.data.train = dict(name=arg.dataset, split="train")
    config.data.validation = dict(split="validation")
    config.batch_size = 32

    config.backbone = dict(name="mlp.MLP", widths=(50, 50))
    config.head = dict(name="dense.Dense", outputs=CLASSES[arg.dataset])
    config.inference.size = arg.size

    config.steps = 500
    config.optimiser = dict(
        name="adam",
        learning_rate=1e-3,
        schedule=dict(name="cosine", warmup_steps=20),
        weight_decay=((".*kernel", 1e-1),),
    )
    config.evaluation.batch_size = 200
    config.evaluation.every = 100
    config.evaluators = dict(
        test=dict(name="classification", data=test),
        corruption=dict(name="corruption", data=test, kinds=("gaussian_noise",)),
    )
    return shrink(config) if arg.runlocal else config
