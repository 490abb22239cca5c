"""Multi-symmetry ensembles: members that ignore rotations, predict them, or neither.

After Loh et al. 2023, "Multi-symmetry ensembles: improving diversity and generalization via
opposing symmetries": a contrastive learner for each hypothesis about rotations by quarter turns,
then training on labels, and mixtures of members of both.

    method      particles                                begins from
    pretrain    `size` of each kind, kinds in turn       random parameters; labels train a probe
    fine_tune   the same, all parameters on labels       the run of `pretrain`, each from its own
    probe       the same, a new head on fixed features   likewise
    labels      `size` of each kind, labels in place     random parameters
                of InfoNCE, with the same symmetries
    supervised  `size`, on labels alone                  random parameters

    kind   objective in pre-training
    eq     InfoNCE + 0.4 cross-entropy of the rotation of a third view, all four of each image
    inv    InfoNCE of views that are turned with probability 1/2
    base   InfoNCE (with the option `base`)

With `turned=some` the images of five classes are turned at random, once and for all, in training,
validation and test data, and those of the five others are upright: the orientation tells something
of the class, and each turned class is easily confused with an upright one. 10,000 training images,
2,000 by which members are chosen, and the test images.

Differences from the paper: small images and networks, few epochs (SETTINGS), Adam in place of LARS,
no changes of colour, crops of a fifth of the area or more, small projectors; fine-tuning begins
with the head that was trained on constant features meanwhile, not with a new one. Weights of losses
and the probability are the paper's, the temperature that of E-SSL's code for CIFAR-10; nothing was
tuned. Fashion-MNIST is reduced to 14 x 14 pixels, by means; its four IDX files are in
runs/data/fashion_mnist. The table has an MLP 128-128, whose pre-training takes half a minute of a
CPU core, and `network=resnet8`, of 8 filters in the first stage, whose takes five minutes.
CIFAR-10 with `network=resnet20`, of 64 filters, is for a GPU and has not been run.

Command: python -m experiments.train --workdir runs/multi_symmetry/turned-pre-trained/seed0 \\
    --config configs/small_images/multi_symmetry.py:method=pretrain
Then: python -m experiments.train --workdir runs/tuned \\
    --config configs/small_images/multi_symmetry.py:method=fine_tune
Table: python -m experiments.reproduce multi_symmetry
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from experiments.experiment.base import base, parse_arg, shrink

CLASSES = 10


class Setting(NamedTuple):
    """What differs between the image sets."""

    images: dict  # spec of the set
    turned: tuple[int, ...]  # classes
    reduce: int
    shape: tuple[int, int, int]  # before they are reduced
    validation: str
    examples: int
    batch_size: int
    epochs: int  # of pre-training
    tuning: int  # epochs on labels
    widths: tuple[int, int]  # of projector and predictor


SETTINGS = {
    # T-shirt, dress, coat, sandal, bag; beside them shirt, pullover, sneaker, boot, trouser
    "fashion_mnist": Setting(
        dict(name="idx", path="runs/data/fashion_mnist"),
        (0, 3, 4, 5, 8), 2, (28, 28, 1), "train[50_000:52_000]", 10_000,
        250, 6, 4, (128, 64),
    ),
    # airplane, automobile, cat, deer, frog; beside them bird, truck, dog, horse, ship
    "cifar10": Setting(
        dict(name="cifar10"), (0, 1, 3, 4, 6), 1, (32, 32, 3), "train[45_000:]", 45_000,
        500, 200, 50, (2048, 128),
    ),
}  # fmt: skip
NETWORKS = {
    "mlp": dict(name="mlp.MLP", widths=(128, 128)),
    "resnet8": dict(name="resnet.ResNet", depth=8, width=8),
    "resnet20": dict(name="resnet.ResNet", depth=20, width=64),
}
METHODS = ("fine_tune", "pretrain", "probe", "labels", "supervised")


def get_config(arg: str | None = None) -> ConfigDict:
    """`images`, `network`, `method`: of the names here; `turned`, `size`, `base`: see above."""
    arg = parse_arg(
        arg,
        images=tuple(SETTINGS),
        network=tuple(NETWORKS),
        turned=("some", "none"),
        method=METHODS,
        size=2,
        base=False,
    )
    setting, config = SETTINGS[arg.images], base()
    config.data.train = dict(
        name="turned",
        images=setting.images,
        turned_classes=setting.turned if arg.turned == "some" else (),
        reduce=setting.reduce,
        split=f"train[:{setting.examples}]",
    )
    held_out = dict(split="validation" if arg.runlocal else setting.validation)
    config.data.validation = held_out
    config.batch_size = setting.batch_size

    config.backbone = NETWORKS[arg.network]
    config.head = dict(name="dense.Dense", outputs=CLASSES)
    kinds = ("eq", "inv", "base")[: 3 if arg.base else 2]
    kinds = ("supervised",) if arg.method == "supervised" else kinds
    config.inference.size = arg.size * len(kinds)

    epochs = setting.tuning
    if arg.method in ("pretrain", "labels"):
        side = setting.shape[0] // setting.reduce
        small = side if arg.network == "mlp" else side // 2  # an MLP has one size of images
        views = [
            (dict(name="crop", size=size, scale=(0.2, 1.0)), dict(name="flip"))
            for size in (side, side, small)
        ]
        projector = dict(name="projector.Projector", widths=setting.widths)
        config.objective = dict(
            name="contrastive",
            temperature=0.5,
            views=tuple(views[:2]),
            predicted=views[2],
            symmetry=dict(name="rotations"),
            invariance=0.5,
            equivariance=0.4,
            projector=projector,
            predictor={**projector, "norm": dict(name="norm.LayerNorm")},
        )
        config.inference.hyper = dict(
            equivariance=(0.4, 0.0, 0.0)[: len(kinds)], invariance=(0.0, 0.5, 0.0)[: len(kinds)]
        )
    if arg.method == "pretrain":
        epochs = setting.epochs
    if arg.method == "labels":
        config.objective.update(
            contrast=None, supervision=1.0, views=((),), compared=1, predicted=()
        )
    if arg.method in ("fine_tune", "probe"):
        of = "turned" if arg.turned == "some" else "upright"
        of = of if arg.network == "mlp" else f"{arg.network.replace('net', 'net-')}-{of}"
        path = f"runs/multi_symmetry/{of}-pre-trained/seed{{seed}}"
        config.pretrained = dict(path=path, layout="own", particle="each")
    if arg.method == "probe":
        config.ensemble.frozen = True
        config.pretrained.keep = ("head/",)
    config.steps = epochs * setting.examples // setting.batch_size
    config.optimiser = dict(name="adam", learning_rate=1e-3, schedule=dict(name="cosine"))
    config.logging.every = 40

    test = dict(split="test")
    config.evaluators = dict(
        test=dict(name="classification", data=test),
        kinds=dict(name="kinds", data=test, kinds=kinds, counts=(2,), classes=True),
        symmetry=dict(
            name="symmetry_probe",
            train=dict(split=config.data.train.split, turned_classes=()),
            data=dict(split="test", turned_classes=()),
            symmetry="rotations",
            examples=1_000,
            kinds=kinds,
        ),
        combination=dict(
            name="combination",
            data=test,
            fit=held_out,
            methods=(dict(name="greedy", size=2), "winners", "gate"),
            kinds=kinds,
        ),
    )
    return shrink(config, setting.shape, CLASSES) if arg.runlocal else config
