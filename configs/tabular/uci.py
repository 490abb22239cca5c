"""Particles on small UCI regression sets: ensembles, SVGD and repulsive ensembles (WGD).

Data: Boston (506 x 13) and concrete (1,030 x 8), of the benchmark of Hernandez-Lobato & Adams 2015
and Gal & Ghahramani 2016, and scikit-learn's diabetes (442 x 10). The first two need files:
`python -m tools.prepare_uci --help`. No package was found for the benchmark's other sets (energy,
kin8nm, naval, power, protein, wine, yacht). A random 90 % are for training; the seed of a run is
that of its split. Inputs and targets are standardised by the training part; metrics are in the
units of the targets.

Model: one hidden layer of 50, ReLU, as in the benchmark. Noise: one level for all inputs, learned
by each particle, by a mean-variance head with a prior of .01 on the weights of the variance, under
which the noise varies some 7 % between inputs. With a prior of .1, under which it can depend on the
input, single networks overfit sets this small: NLL of one network, of 20 together, and coverage of
90 % intervals are 3.43, 2.69, 78 % on Boston and 3.21, 3.08, 86 % on concrete, against 2.96, 2.53,
85 % and 3.11, 3.02, 88 % with .01 (trained on 80 %, tested on the next 10 %, 4 splits).
Prior: Gaussian, .3 for the first kernel (1 / sqrt(inputs), about), .2 = sqrt(2 / 50) for that of
the mean, so that a layer preserves the variance of its inputs; 1 for biases. All methods have the
same prior and so approximate the same posterior; `ensemble` has MAP networks.

Differences from the literature: particles instead of one posterior approximation; nothing is tuned
per split (Gal & Ghahramani search noise and dropout rate in each); 2,000 steps of Adam at 1e-2,
batches of 100; SGLD at .02 down to .002, where the tightest prior allows .09.
Hardware and time: 2 CPU cores, four seconds of CPU time.
Command: python -m experiments.train --config configs/tabular/uci.py:dataset=boston,method=svgd \\
    --workdir runs/uci
Table: python -m experiments.reproduce uci
"""

from ml_collections import ConfigDict, FieldReference

from experiments.experiment.base import base, parse_arg, shrink

FOLDER = "~/uci_datasets"  # of the files that prepare_uci writes
DATASETS = ("diabetes", "boston", "concrete")
DIRECTIONS = dict(
    ensemble=dict(name="independent"),
    svgd=dict(name="svgd"),
    svgd_functions=dict(name="svgd", space="functions"),
    wgd=dict(name="wgd"),
    wgd_functions=dict(name="wgd", space="functions"),
    sgld=dict(name="independent"),
)
PRIOR = (  # standard deviations; 1 for biases
    ("backbone/.*kernel", 0.3),
    ("head/mean/kernel", 0.2),
    ("head/variance/kernel", 0.01),
)


def get_config(arg: str | None = None) -> ConfigDict:
    """`dataset`: one of DATASETS; `method`: one of DIRECTIONS; `size`: particles."""
    arg = parse_arg(arg, dataset=DATASETS, method=tuple(DIRECTIONS), size=20)
    config = base()

    # References: a seed or a path that is set in one place is set in all.
    seed = config.get_ref("seed")
    if arg.dataset == "diabetes" or arg.runlocal:
        data = dict(name="diabetes", seed=seed)
        train, test = "train+validation+test[:50%]", "test[50%:]"  # 90 and 10 % of all
    else:
        path = FieldReference(f"{FOLDER}/{arg.dataset}.npz")
        data = dict(name="npz", path=path, seed=seed, standardise=True)
        train, test = "train[:90%]", "train[90%:]"
    config.data.train = dict(data, split=train, statistics=train)
    config.batch_size = 100

    config.backbone = dict(name="mlp.MLP", widths=(50,))
    config.head = dict(name="mean_variance.MeanVariance", outputs=1, minimum=1e-3)
    config.likelihood = dict(name="gaussian", noise_std=0.0)
    config.inference.size = arg.size
    config.inference.direction = DIRECTIONS[arg.method]
    config.inference.prior = dict(name="gaussian", scale=1.0, rules=PRIOR)

    config.steps = 2_000
    config.optimiser = dict(
        name="adam", learning_rate=1e-2, schedule=dict(name="cosine", warmup_steps=50)
    )
    if (
        arg.method == "sgld"
    ):  # each particle is a chain, whose noise depends on the size of the data
        config.optimiser = dict(
            name="sgld", learning_rate=0.02, schedule=dict(name="cosine", final=0.1)
        )
    config.logging.every = 500
    config.checkpoint.every = 2_000
    config.evaluation.batch_size = 128
    config.evaluators = dict(test=dict(name="regression", data=dict(split=test)))
    return shrink(config) if arg.runlocal else config
