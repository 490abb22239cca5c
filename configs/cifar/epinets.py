"""Epinets on frozen ResNets, and ensembles of heads on the same features: CIFAR-10.

The networks are ResNet-20, -32, -44 and -56 of github.com/akamaster/pytorch_resnet_cifar10, whose
features of all images were computed once (ResNet-56's are also those of frozen.py, in the folder
above the others'):

    python -m tools.frozen_features --weights resnet56.npz --data DIR
    for D in 20 32 44; do python -m tools.frozen_features --weights resnet$D.npz --depth $D \\
        --data DIR --out ~/frozen_cifar10/resnet$D; done
    cd ~/frozen_cifar10 && python -m tools.frozen_features --join resnet20,resnet32,resnet44,. \\
        --out together

They have seen all 50,000 training images, so calibration uses each half of the test images for the
other (`evaluators/halves.py`), and under corruption the clean test images that were not corrupted.

    released       the network's own last layer, not trained further (one step at a rate of 0)
    together       the four released networks, a deep ensemble
    heads          `size` networks with one hidden layer of 128, trained anew
    random_priors  these with randomised priors of scale 3 (the Neural Testbed's)
    epinet         beside the released last layer, which stays as it is: the released settings for
                   CIFAR-10 of Osband et al. 2023 (authors' code): 20 dimensions of z, one hidden
                   layer of 50, a matched prior of scale 4, no additive prior, features alone
    no_prior       the same without the matched prior

`size` is also the number of indices at prediction; training has 8, drawn anew at each step.

Batches of 256, Adam at 1e-3, cosine. Heads have 1,000 steps (five epochs) as in frozen.py, epinets
EPINET_STEPS, as their learned part has to undo the prior on the training data first. No setting was
chosen by test data.

Table: python -m experiments.reproduce cifar10_epinets
"""

from ml_collections import ConfigDict

from configs.cifar.frozen import CLASSES, FEATURES, FOLDER, OUTSIDE
from experiments.experiment.base import base, parse_arg, shrink

METHODS = ("epinet", "no_prior", "released", "together", "heads", "random_priors")
DEPTHS = (56, 20, 32, 44)
FOLDERS = {56: FOLDER, **{depth: f"{FOLDER}/resnet{depth}" for depth in DEPTHS[1:]}}
EPINET_STEPS = 10_000
CORRUPTED = 2_000  # images, the default of the command above


def get_config(arg: str | None = None) -> ConfigDict:
    """`method`: one of METHODS; `depth`: of the network; `size`: heads, or indices at prediction;
    `steps`: of training, 0 for those above.
    """
    arg = parse_arg(arg, method=METHODS, depth=DEPTHS, size=100, steps=0)
    config = base()
    together, index = arg.method == "together", arg.method in ("epinet", "no_prior")
    folder = f"{FOLDER}/together" if together else FOLDERS[arg.depth]
    depths = sorted(DEPTHS) if together else [arg.depth]

    def file(name: str, split: str = "test", **fields) -> dict:
        return dict(
            name="npz", path=f"{folder}/{name}.npz", split=split, num_classes=CLASSES, **fields
        )

    config.data.train = file("train", "train")
    config.batch_size = 256

    small = arg.method in ("heads", "random_priors")
    config.backbone = dict(name="mlp.MLP", widths=(128,) if small else ())
    config.head = dict(name="dense.Dense", outputs=CLASSES)
    config.steps = arg.steps or (EPINET_STEPS if index else 1_000)
    config.optimiser = dict(name="adam", learning_rate=1e-3, schedule=dict(name="cosine"))
    if small:
        config.inference.size = arg.size
    if arg.method == "random_priors":
        config.ensemble = dict(name="randomised_prior", scale=3.0)
    if index:
        config.ensemble = dict(
            name="epinet",
            size=arg.size,
            training_size=8,
            index=20,
            widths=(50,),
            prior_scale=4.0 if arg.method == "epinet" else 0.0,
            frozen=True,
        )
    if not small:
        own = ((".*", "{0}"),)  # the file has this project's names
        config.pretrained = dict(path=f"{folder}/head.npz", layout="resnet", rules=own)
    if arg.method in ("released", "together"):
        config.optimiser.learning_rate, config.steps = 0.0, 1
    if together:
        config.ensemble = dict(name="multi_head", size=len(DEPTHS))
    config.logging.every = 500
    config.checkpoint.every = 10_000
    config.evaluation.batch_size = 2_000

    test = file("test")
    config.evaluators = dict(
        test=dict(name="classification", data=test),
        halves=dict(name="halves", data=test, sets=()),
        joint=dict(name="joint", data=test, halves=True),
        ood=dict(name="ood", data=test, sets={name: file(name) for name in OUTSIDE}),
    )
    if not arg.runlocal:  # stand-ins have no further entries
        config.evaluators.corrupted = dict(
            name="corrupted",
            data=file("corrupted", entries=("corruption", "severity")),
            fit=file("test", f"test[{CORRUPTED}:]"),
        )
        config.evaluators.flops = dict(name="flops", features=[resnet(d) for d in depths])
    return shrink(config, (FEATURES * len(depths),), CLASSES) if arg.runlocal else config


def resnet(depth: int) -> dict:
    """The backbone of a released network, and the shape of its inputs."""
    fields = dict(depth=depth, shortcuts="zero_padding", padding="symmetric")
    return dict(backbone=dict(name="resnet.ResNet", **fields), shape=(32, 32, 3))
