"""A deep ensemble or a Gaussian process by random features, on y = x sin x with a gap in the data.

Data: 45 inputs in each of [1.5, 2.5] and [4.5, 6.0], noise of standard deviation 0.25. Data, Adam
at 1e-2, batches of 32 and 5,000 steps are those of the 1-D regression of "Repulsive deep ensembles
are Bayesian" (D'Angelo & Fortuin 2021; github.com/ratschlab/repulsive_ensembles), which shows a
figure without numbers.

Differences from the source: networks of 2 x 50 (source: 2 x 10, of which one in ten dies here), 10
of them (source: 100); the likelihood has the true noise (source: standard deviation 1); no prior on
the weights; He initialisation (source: N(0, 1)).

`method=gp` has no network: 1,024 random features of x itself, an RBF kernel with length scale 0.5
and standard deviation 4, MAP weights by Adam, and their exact posterior by a pass over the data.

Result: test RMSE .28, .27, .29 and NLL .15, .15, .20 for seeds 0, 1, 2.
Hardware and time: 2 CPU cores, about ten seconds.
Command: python -m experiments.train --config configs/toys/regression.py --workdir runs/regression
"""

from ml_collections import ConfigDict

from experiments.experiment.base import base, parse_arg, shrink


def get_config(arg: str | None = None) -> ConfigDict:
    """`method`: ensemble or gp; `size`: networks in the ensemble."""
    arg = parse_arg(arg, method=("ensemble", "gp"), size=10)
    config = base()

    config.data.train = dict(name="x_sin_x", split="train")
    config.batch_size = 32

    config.backbone = dict(name="mlp.MLP", widths=(50, 50))
    config.head = dict(name="dense.Dense", outputs=1)
    config.likelihood = dict(name="gaussian", noise_std=0.25)
    config.inference.size = arg.size

    config.steps = 5_000
    config.optimiser = dict(name="adam", learning_rate=1e-2)
    if arg.method == "gp":
        config.backbone.widths = ()
        config.head = dict(
            name="sngp.Sngp",
            outputs=1,
            features=1_024,
            length_scale=0.5,
            amplitude=4.0,
            normalise=False,
            noise=0.25**2,  # the likelihood's
        )
        config.inference.size = 1
        config.stages = (dict(name="laplace"),)
        config.optimiser.l2 = (("head/logits/kernel", 1 / 90),)  # beta ~ N(0, I)
        config.optimiser.schedule = dict(name="cosine")
    config.logging.every = 500
    config.checkpoint.every = 5_000

    config.evaluation.batch_size = 96
    config.evaluators = dict(
        test=dict(
            name="regression",
            data=dict(split="test"),
            grid=dict(split="grid"),
        ),
    )
    return shrink(config) if arg.runlocal else config
