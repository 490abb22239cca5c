"""Data in which several features tell the class: which of them do the members of an ensemble use?

    data      simple or available feature         other feature                     sets
    slabs     1 linear coordinate                 4 of 5 slabs each                 randomised
    latents   large, predictivity 1               small, predictivity 1             shortcut, core
    sprites   colour                              shape, scale, orientation         one for each cue
    mnist     digit                               garment below (Fashion-MNIST)     randomised
    dominoes  0 or 1 (MNIST)                      automobile or truck (CIFAR-10)    randomised

In training all features tell the class, so that what a member uses is its own choice. `agreement`
is the correlation of the features in the unlabelled stream: the share of its examples in which the
simple feature tells the class too (on the diagonal, for sprites).

    method    functions                 what makes them differ
    single    one network
    ensemble  `size` networks           their initial parameters
    heads     `size` heads on a trunk   their initial parameters
    divdis    `size` heads on a trunk   mutual information on the stream
    d_bat     `size` networks           disagreement with those before, one after the other
    joint     `size` networks           the same, all at once
    l1        `size` networks           total variation on the stream

MLP 100-100 for tables; a small ResNet (depth 8, width 16) for images. Adam 1e-3, constant; batches
of 128, and as many unlabelled examples; 2,000 steps of each network. Weights are the defaults of
the published codes, others are ours; nothing here is tuned. Data are read from files of the sets'
names in tfds; `data.train.simple` and `data.train.hard` take other readers.
Hardware and time: not measured yet.
Command: python -m experiments.train --config configs/toys/shortcuts.py:data=slabs,method=d_bat \\
    --workdir runs/shortcuts
"""

from ml_collections import ConfigDict

from experiments.experiment.base import base, parse_arg, shrink

SLABS = dict(name="linear_and_slabs", linear=1, slabs=(5,) * 4, size=20_000, test_size=5_000)
LATENTS = dict(
    name="predictive_and_available", predictivity=(1.0, 1.0), amplification=4.0, dimensions=20
)
SPRITES = dict(name="sprites", size=4_000, test_size=1_000)
MNIST = dict(
    name="dominoes", simple=dict(name="mnist"), hard=dict(name="fashion_mnist"), unlabelled=0.2
)
DOMINOES = dict(
    name="dominoes",
    simple=dict(name="mnist"),
    hard=dict(name="cifar10"),
    simple_classes=(0, 1),
    hard_classes=(1, 9),
    unlabelled=0.2,
)
DATA = dict(slabs=SLABS, latents=LATENTS, sprites=SPRITES, mnist=MNIST, dominoes=DOMINOES)
CLASSES = dict(slabs=2, latents=2, sprites=4, mnist=10, dominoes=2)
CUES = dict(
    latents=("shortcut", "core"), sprites=("colour", "shape", "scale", "orientation")
)  # of the sets with off-diagonal splits; others are randomised
METHODS = ("single", "ensemble", "heads", "divdis", "d_bat", "joint", "l1")


def get_config(arg: str | None = None) -> ConfigDict:
    """`data`: one of DATA; `method`: one of METHODS; `size`: functions; `agreement`: see above."""
    arg = parse_arg(arg, data=tuple(DATA), method=METHODS, size=2, agreement=0.0)
    config = base()
    config.data.train = dict(DATA[arg.data], split="train")
    config.batch_size = 128

    tables = arg.data in ("slabs", "latents")
    config.backbone = dict(name="mlp.MLP", widths=(100, 100))
    if not tables:
        config.backbone = dict(name="resnet.ResNet", depth=8, width=16)
    config.head = dict(name="dense.Dense", outputs=CLASSES[arg.data])
    if arg.method in ("heads", "divdis"):
        config.ensemble = dict(name="multi_head", size=arg.size)
    elif arg.method != "single":
        config.inference.size = arg.size
    config.steps = 2_000
    if arg.method in ("d_bat", "joint", "l1"):
        config.inference.direction = dict(name="together")
    config.objective = dict(
        divdis=dict(name="divdis"),
        d_bat=dict(name="d_bat", steps_each=2 if arg.runlocal else config.steps),
        joint=dict(name="d_bat", joint=True),
        l1=dict(name="disagreement", kind="l1"),
    ).get(arg.method, dict())
    if config.objective:
        unlabelled = dict(split="unlabelled", agreement=arg.agreement, batch_size=128)
        config.data.streams = dict(unlabelled=unlabelled)
    if arg.method == "d_bat":
        config.steps = arg.size * config.steps
    config.optimiser = dict(name="adam", learning_rate=1e-3)
    config.logging.every = 200

    test = dict(split="test")
    config.evaluators = dict(test=dict(name="classification", data=test))
    if arg.data in CUES:
        off = {cue: dict(split=f"off_{cue}") for cue in CUES[arg.data]}
        config.evaluators.cues = dict(name="cues", sets=off, diagonal=test)
    else:
        randomised = ("simple_randomised", "complex_randomised")
        config.evaluators.simplicity = dict(
            name="simplicity", data=test, **{name: dict(split=name) for name in randomised}
        )
    if config.objective:
        config.evaluators.disambiguation = dict(
            name="disambiguation",
            data=off["core"] if arg.data == "latents" else test,
            pool=dict(split="unlabelled", agreement=arg.agreement),
            labels=(4, 16),
        )
    return shrink(config, (28, 28, 1), 10) if arg.runlocal else config
