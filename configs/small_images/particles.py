"""Fifty networks on Fashion-MNIST by every particle method, with MNIST and KMNIST as OOD data.

The comparison of "On Stein Variational Neural Network Ensembles" (D'Angelo, Fortuin & Wenzel 2021)
and "Repulsive deep ensembles are Bayesian" (D'Angelo & Fortuin 2021): an MLP with three hidden
layers of 100, Gaussian prior of standard deviation 1. In their code width, depth, particles, rate
and steps are arguments; 50 particles, batches of 256 and 50,000 steps are quoted for the paper,
which could not be checked here, so none of its numbers are shown.

Methods, by `inference.direction`: independent particles; SVGD in weight space (RBF), in function
space (`f_`), and in both interpretations of "hybrid" (`functional_kernel`, `functional_repulsion`);
WGD with three estimators in weight and function space; `stochastic_svgd`, SVGD with the noise of
its own diffusion; `sgld`, each particle a chain; `hyper`, prior scales of .1 to .5 in turn, as in
the second paper; `hyper_selected`, as in "Hyperparameter ensembles for robustness and uncertainty
quantification" (Wenzel et al. 2020), four times as many particles, with log-uniform prior scales
from .1 to 10, of which greedy selection on a held-out 5 % of the training data keeps `size`.
Functions are compared by their logits on the training batch; in all rows the prior is on weights.

Differences from the source: fewer particles and steps in the committed table (see its command);
cosine learning rates; members see the same batches. The samplers have their own rates, since their
noise for a posterior of 60,000 examples at temperature 1 depends on the rate.

Command: python -m experiments.train --config configs/small_images/particles.py:method=svgd \\
    --workdir runs/svgd
Table: python -m experiments.reproduce stein_fashion_mnist
Fashion-MNIST without a network: python -m tools.prepare_fashion_mnist --help
"""

from ml_collections import ConfigDict

from experiments.experiment.base import base, parse_arg, shrink

SHAPE, CLASSES = (28, 28, 1), 10
DIRECTIONS = dict(
    ensemble=dict(name="independent"),
    hyper=dict(name="independent"),
    hyper_selected=dict(name="independent"),
    svgd=dict(name="svgd"),
    stochastic_svgd=dict(name="svgd"),
    f_svgd=dict(name="svgd", space="functions"),
    functional_kernel=dict(name="svgd", space="functional_kernel"),
    functional_repulsion=dict(name="svgd", space="functional_repulsion"),
    **{e: dict(name="wgd", estimator=e) for e in ("kde", "sge", "ssge")},
    **{f"f_{e}": dict(name="wgd", estimator=e, space="functions") for e in ("kde", "sge", "ssge")},
    sgld=dict(name="independent"),
)


def get_config(arg: str | None = None) -> ConfigDict:
    """`method`: one of DIRECTIONS; `size`: particles that predict; `steps`: of training."""
    arg = parse_arg(arg, method=tuple(DIRECTIONS), size=50, steps=50_000)
    config = base()
    test = dict(split="test")

    config.data.train = dict(name="fashion_mnist", split="train")
    config.batch_size = 256

    config.backbone = dict(name="mlp.MLP", widths=(100, 100, 100))
    config.head = dict(name="dense.Dense", outputs=CLASSES)
    config.inference.size = arg.size
    config.inference.direction = DIRECTIONS[arg.method]
    config.inference.prior = dict(name="gaussian", scale=1.0)
    if arg.method == "hyper":
        config.inference.hyper = dict(prior_scale=(0.1, 0.2, 0.3, 0.4, 0.5))
    if arg.method == "hyper_selected":
        config.data.train.split = "train[:95%]"
        config.data.validation = dict(split="train[95%:]")
        config.inference.size = 4 * arg.size
        config.inference.hyper = dict(prior_scale=dict(low=0.1, high=10.0))
        config.stages = (dict(name="select", size=arg.size),)

    config.steps = arg.steps
    config.optimiser = dict(name="adam", learning_rate=1e-3, schedule=dict(name="cosine"))
    if arg.method in ("sgld", "stochastic_svgd"):
        # SVGD averages gradients over P particles; distant particles use only their own.
        rate = 0.1 if arg.method == "sgld" else 0.1 * arg.size
        config.optimiser = dict(
            name="sgld", learning_rate=rate, schedule=dict(name="cosine", final=0.01)
        )
    config.logging.every = 500
    config.checkpoint.every = 10_000

    elsewhere = {name: dict(name=name, split="test") for name in ("kmnist", "mnist")}
    config.evaluators = dict(
        test=dict(name="classification", data=test, bins=30),
        ood=dict(name="ood", data=test, sets=elsewhere),
    )
    return shrink(config, SHAPE, CLASSES, widths=(16,)) if arg.runlocal else config
