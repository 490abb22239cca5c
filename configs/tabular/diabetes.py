"""A deep ensemble of networks that predict mean and variance, on scikit-learn's diabetes set.

Data: 442 patients, 10 features, disease progression after a year; inputs and targets standardised
by the training part. Method: Lakshminarayanan et al. (2017), without adversarial training; 5
networks as in the paper, the other settings are ours; nothing is published for this split.
Hardware and time: 2 CPU cores, about ten seconds.
Command: python -m experiments.train --config configs/tabular/diabetes.py --workdir runs/diabetes
"""

from ml_collections import ConfigDict

from experiments.experiment.base import base, parse_arg, shrink


def get_config(arg: str | None = None) -> ConfigDict:
    """`size`: networks in the ensemble."""
    arg = parse_arg(arg, size=5)
    config = base()

    config.data.train = dict(name="diabetes", split="train")
    config.data.validation = dict(split="validation")
    config.batch_size = 32

    config.backbone = dict(name="mlp.MLP", widths=(50,))
    config.head = dict(name="mean_variance.MeanVariance", outputs=1, minimum=1e-3)
    config.likelihood = dict(name="gaussian", noise_std=0.0)
    config.inference.size = arg.size

    config.steps = 500
    config.optimiser = dict(
        name="adam",
        learning_rate=1e-3,
        schedule=dict(name="cosine", warmup_steps=20),
        weight_decay=((".*kernel", 1e-1),),
        clip=10.0,
    )
    config.evaluation.batch_size = 96
    config.evaluation.every = 100
    config.evaluators = dict(
        test=dict(name="regression", data=dict(split="test")),
    )
    return shrink(config) if arg.runlocal else config
