"""Particle methods against the true posterior of a small network: a regression, five Gaussians.

Settings are those of the toys of "Repulsive deep ensembles are Bayesian" (D'Angelo & Fortuin 2021;
github.com/ratschlab/repulsive_ensembles), which shows figures without numbers:

    regression  y = x sin x + N(0, .25^2), 45 inputs in each of [1.5, 2.5] and [4.5, 6]; 5,000 steps
                of batches of 32; the likelihood's noise has standard deviation 1
    gaussians   5 Gaussians on a circle of radius 5, 40 training and 20 test points each; 10,000
                steps of batches of 128; OOD data on a ring of radius 11 to 30 and at the origin

    100 MLPs of 2 x 10 ReLU, weights and biases from N(0, 1), which is the prior too; Adam at 1e-2.

All runs have the same data, so that there is one posterior; the seed of a run is that of its
particles and batches. The reference is NUTS, see `studies/reference.py`:

    python -m studies.reference --config configs/toys/particles.py:task=regression \\
        --out results/toy_regression/reference.npz

16 chains of 600 steps of adaptation and 400 draws; of f on the grid, R-hat is at most 1.020 and the
effective sample size at least 957 in the regression, 1.004 and 4,290 for the Gaussians.

Methods: `ensemble` has MAP networks; `svgd`, `wgd_*` in weight and `fwgd_*`, `svgd_functions` in
function space (logits, on the batch); both readings of "hybrid" (`uncertainty/inference/
interacting.py`); `stochastic_svgd`, `sgld`, `psgld` and `sghmc` have noise, and their own rates:
among 1 and 3 times powers of ten the one with the smallest training loss of 20 chains after these
steps (seed 0; distances to the reference were visible, but not the criterion). The rate of
stochastic SVGD is 100 times SGLD's, since K / P is I / P for particles that are far apart.

Differences from the source: in the regression its prior's score is N times too large, which makes
the repulsion N times too weak, ours is not; the noise of stochastic SVGD has the matrix root, and
is not passed through Adam; a prior on weights in function space too (source: on functions, by
draws).
Hardware and time: 2 CPU cores, 15 to 60 s (regression) and about twice that (gaussians), with other
programs running. With OPENBLAS_NUM_THREADS=1, as in these runs, the eigenvectors of 100 x 100
matrices in stochastic SVGD and SSGE take .6 ms, without it 4 to 24 ms on shared cores.
Command: python -m experiments.train --config configs/toys/particles.py:method=svgd \\
    --workdir runs/particles
Tables: python -m experiments.reproduce toy_regression, and toy_gaussians
"""

from ml_collections import ConfigDict

from experiments.experiment.base import base, parse_arg, shrink

NORMAL = dict(name="normal", stddev=1.0)
DIRECTIONS = dict(
    ensemble=dict(name="independent"),
    svgd=dict(name="svgd"),
    svgd_functions=dict(name="svgd", space="functions"),
    svgd_functional_kernel=dict(name="svgd", space="functional_kernel"),
    svgd_functional_repulsion=dict(name="svgd", space="functional_repulsion"),
    stochastic_svgd=dict(name="svgd"),
    **{f"wgd_{e}": dict(name="wgd", estimator=e) for e in ("kde", "sge", "ssge")},
    **{
        f"fwgd_{e}": dict(name="wgd", estimator=e, space="functions")
        for e in ("kde", "sge", "ssge")
    },
    sgld=dict(name="independent"),
    psgld=dict(name="independent"),
    sghmc=dict(name="independent"),
)
SAMPLERS = dict(stochastic_svgd="sgld", sgld="sgld", psgld="psgld", sghmc="sghmc")
RATES = dict(
    regression=dict(stochastic_svgd=3e-1, sgld=3e-3, psgld=3e-3, sghmc=1e-3),
    gaussians=dict(stochastic_svgd=3.0, sgld=3e-2, psgld=1e-2, sghmc=1e-2),
)


def get_config(arg: str | None = None) -> ConfigDict:
    """`task`: regression or gaussians; `method`: one of DIRECTIONS; `size`: particles."""
    arg = parse_arg(arg, task=tuple(RATES), method=tuple(DIRECTIONS), size=100)
    config = base()
    regression = arg.task == "regression"

    data = dict(name="x_sin_x" if regression else "gaussians_2d")
    config.data.train = dict(data, split="train")
    config.batch_size = 32 if regression else 128

    config.backbone = dict(name="mlp.MLP", widths=(10, 10), kernel_init=NORMAL, bias_init=NORMAL)
    config.head = dict(
        name="dense.Dense", outputs=1 if regression else 5, kernel_init=NORMAL, bias_init=NORMAL
    )
    config.likelihood = dict(name="gaussian", noise_std=1.0) if regression else dict(name="softmax")
    config.inference.size = arg.size
    config.inference.direction = DIRECTIONS[arg.method]
    config.inference.prior = dict(name="gaussian", scale=1.0)

    config.steps = 5_000 if regression else 10_000
    config.optimiser = dict(name="adam", learning_rate=1e-2)
    if arg.method in SAMPLERS:
        rate = RATES[arg.task][arg.method]
        config.optimiser = dict(name=SAMPLERS[arg.method], learning_rate=rate)
    config.logging.every = 1_000
    config.checkpoint.every = config.steps

    test = dict(split="test")
    posterior = dict(
        name="posterior",
        reference=f"results/toy_{arg.task}/reference.npz",
        data=dict(split="grid"),
        train=dict(split="train"),
        near=0.1 if regression else 1.0,
    )
    if regression:
        config.evaluators = dict(test=dict(name="regression", data=test), posterior=posterior)
    else:
        ood = dict(split="ood")
        config.evaluators = dict(
            test=dict(name="classification", data=test),
            ood=dict(name="ood", data=test, sets=dict(ring=ood)),
            map=dict(
                name="uncertainty_map",
                data=dict(split="train"),
                groups=dict(test=test),
                ood=dict(ring=ood),
                limits=(-20.0, 20.0),
                points=64,
            ),
            posterior=posterior,
        )
    return shrink(config) if arg.runlocal else config
