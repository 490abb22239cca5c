"""Data in which several features tell the class: which of them do the members of an ensemble use?

    data      simple or available feature         other feature                     sets
    slabs     1 linear coordinate                 4 of 5 slabs each                 randomised
    noisy     the same, wrong for 5 %             4 of 5 slabs each                 randomised
    mnist     digit                               garment below (Fashion-MNIST)     randomised
    dominoes  0 or 1 (MNIST)                      automobile or truck (CIFAR-10)    randomised
    sprites   colour                              shape, scale, orientation         one for each cue
    latents   shortcut, `amplification` times     core                              shortcut, core
              as large

In training all features tell the class, so that what a member uses is its own choice. `agreement`
is the correlation of the features in the unlabelled stream: the share of its examples in which the
simple feature tells the class too (on the diagonal, for sprites). By default features are
independent there.

    method          functions                 what makes them differ
    single          one network
    linear          a linear layer
    ensemble        `size` networks           their initial parameters
    heads           `size` heads on a trunk   their initial parameters
    batch_ensemble  `size` members            fast weights
    vit             `size` ViTs               their initial parameters
    e3              `size` members of a ViT   routers, each with two experts
    svgd            `size` networks           repulsion of the weights
    f_svgd          `size` networks           repulsion of the functions at `points`
    hybrid          `size` networks           the same; gradients are shared by likeness of weights
    f_wgd           `size` networks           the same; gradients are not shared
    divdis          `size` heads on a trunk   mutual information on the stream
    d_bat           `size` networks           disagreement with those before, one after the other
    joint           `size` networks           the same, all at once
    l1              `size` networks           total variation on the stream
    multi_symmetry  `size` networks           half predict an element of a symmetry, half are moved
                                              by it at random: swapped halves, turned sprites
    control         one network               nothing; in its training data one feature alone tells

`shortcut` and `core` are the probabilities that these latents have the sign of the label.
`points` are the training batch, or the unlabelled stream, as many; `compared` is what.
`strength` multiplies the repulsion, whose factor in the posterior is 1 / N: it is the temperature.
The prior is N(0, strength), whose gradient is w / (strength N), so a strong repulsion has almost no
prior against it. The control shows what can be learned of the feature `cue` of sprites, and of the
complex one of all others.

MLP 100-100 for tables; a ResNet (depth 8, width 16) or a ViT (width 32, depth 2) for images. Adam
1e-3, constant (ViT: 3e-3, cosine); batches of 128, and as many unlabelled examples; 2,000 steps of
each network. With `small`, images have half as many pixels a side, networks are MLPs 64-64 and for
sprites LeNet5 with widths (8, 16, 32, 64), batches 64, rates 3e-3, and steps as in SMALL.
Weights of DivDis and D-BAT are the defaults of the published codes, those of multi-symmetry
members are of Loh et al. 2023, others are ours. Nothing is
tuned but the strength, in configs/tables/shortcut_strength.py. Data are tfds sets, or, in the
folder `files`, mnist and fashion_mnist as IDX and cifar10 in the binary form.
Hardware and time: one CPU core, 4 to 20 s for a run with `small`; the others are not measured.
Command: python -m experiments.train --config configs/toys/shortcuts.py:data=slabs,method=d_bat \\
    --workdir runs/shortcuts
Tables: python -m experiments.reproduce shortcuts (and shortcut_cues, shortcut_strength,
    shortcut_agreement)
"""

from ml_collections import ConfigDict

from configs.small_images.vit import set_method
from experiments.experiment.base import base, parse_arg, shrink

SLABS = dict(name="linear_and_slabs", linear=1, slabs=(5,) * 4, size=20_000, test_size=5_000)
CUES = ("colour", "shape", "scale", "orientation")
DATA = dict(
    slabs=SLABS,
    noisy=SLABS | dict(noise=0.1),
    mnist=dict(
        name="dominoes", simple=dict(name="mnist"), hard=dict(name="fashion_mnist"), unlabelled=0.2
    ),
    dominoes=dict(
        name="dominoes",
        simple=dict(name="mnist"),
        hard=dict(name="cifar10"),
        simple_classes=(0, 1),
        hard_classes=(1, 9),
        unlabelled=0.2,
    ),
    sprites=dict(name="sprites", cues=CUES, size=4_000, test_size=1_000),
    latents=dict(name="predictive_and_available", dimensions=20),
)
CLASSES = dict(slabs=2, noisy=2, mnist=10, dominoes=2, sprites=4, latents=2)
TABLES = ("slabs", "noisy", "latents")
INDEPENDENT = dict(slabs=0.5, noisy=0.5, mnist=0.1, dominoes=0.5, sprites=0.0, latents=0.5)
OFF = dict(latents=("shortcut", "core"), sprites=CUES)  # sets with off-diagonal splits
SMALL = dict(slabs=1_500, noisy=1_500, mnist=600, dominoes=400, sprites=400)  # steps
SYMMETRY = dict(mnist="half_swap", dominoes="half_swap", sprites="rotations")
HYPOTHESES = dict(  # labels, and a symmetry is predicted or ignored
    name="contrastive",
    contrast=None,
    supervision=1.0,
    views=((),),
    compared=1,
    predicted=(),
    invariance=0.5,
    equivariance=0.4,
    predictor=dict(name="projector.Projector", widths=(128, 64), norm=dict(name="norm.LayerNorm")),
)
PATCH = dict(mnist=14, dominoes=16, sprites=8)  # side of the ViT's patches
ALONE = ("single", "linear", "control")
TOGETHER, REPULSIVE = ("d_bat", "joint", "l1"), ("svgd", "f_svgd", "hybrid", "f_wgd")
METHODS = (
    "single",
    "linear",
    "ensemble",
    "heads",
    "batch_ensemble",
    "vit",
    "e3",
    *REPULSIVE,
    "divdis",
    *TOGETHER,
    "multi_symmetry",
    "control",
)


def get_config(arg: str | None = None) -> ConfigDict:
    """`data`: one of DATA; `method`: one of METHODS; `size`: functions; `agreement`: see above, -1
    for independent features; `strength`, `points`, `compared`: of repulsion; `cue`: of the control
    on sprites; `shortcut`, `core`, `amplification`: of latents; `small`, `files`: see above."""
    arg = parse_arg(
        arg,
        data=tuple(DATA),
        method=METHODS,
        size=4,
        agreement=-1.0,
        strength=1.0,
        points=("batch", "unlabelled"),
        compared=("logits", "probabilities"),
        cue=("shape", *(cue for cue in CUES if cue != "shape")),
        shortcut=1.0,
        core=1.0,
        amplification=4.0,
        small=False,
        files="",
    )
    if arg.method not in ALONE and arg.size < 2:
        raise ValueError(f"size: {arg.size}; method={arg.method} has two functions or more")
    if arg.method == "multi_symmetry" and arg.size % 2:
        raise ValueError(f"size: {arg.size}; an even number, half of each hypothesis")
    config = base()
    config.data.train = train_data(arg)
    agreement = INDEPENDENT[arg.data] if arg.agreement < 0 else arg.agreement
    unlabelled = dict(split="unlabelled", agreement=agreement)

    images = arg.data not in TABLES
    config.batch_size = 64 if arg.small else 128
    config.steps = SMALL.get(arg.data, 2_000) if arg.small else 2_000
    config.optimiser = dict(name="adam", learning_rate=3e-3 if arg.small else 1e-3)
    config.logging.every = 200
    config.head = dict(name="dense.Dense", outputs=CLASSES[arg.data])
    config.backbone = backbone(arg, images)
    set_members(config, arg)
    if arg.method in ("divdis", *TOGETHER):
        config.data.streams = dict(unlabelled=dict(unlabelled, batch_size=config.batch_size))
    elif arg.method in REPULSIVE and arg.points == "unlabelled":
        config.data.streams = dict(context=dict(unlabelled, batch_size=config.batch_size))
    set_evaluators(config, arg, unlabelled)
    shape = (32, 32, 3) if arg.data == "dominoes" else (28, 28, 1)
    return shrink(config, shape, 10) if arg.runlocal else config


def train_data(arg: ConfigDict) -> dict:
    """The training data, those of the control included."""
    data = dict(DATA[arg.data], split="train")
    if arg.data == "latents":
        data |= dict(predictivity=(arg.shortcut, arg.core), amplification=arg.amplification)
    if arg.files and arg.data in ("mnist", "dominoes"):
        hard = dict(name="idx", path=f"{arg.files}/fashion_mnist")
        if arg.data == "dominoes":
            hard = dict(name="cifar_binary", path=f"{arg.files}/cifar10")
        data |= dict(simple=dict(name="idx", path=f"{arg.files}/mnist"), hard=hard)
    if arg.small:
        data |= dict(sprites=dict(side=16)).get(arg.data, dict(pool=2) if "hard" in data else {})
    if arg.method == "control":
        if arg.data == "sprites":  # the label of this split is the value of the last cue
            others = tuple(cue for cue in CUES if cue != arg.cue)
            data |= dict(cues=(*others, arg.cue), split="unlabelled")
        elif arg.data == "latents":
            data |= dict(predictivity=(0.5, arg.core))
        else:
            data |= dict(correlation=1 / CLASSES[arg.data]) if "hard" in data else dict(noise=1.0)
    return data


def backbone(arg: ConfigDict, images: bool) -> dict:
    """The features of the method on these data."""
    if arg.method in ("vit", "e3"):
        if not images:
            raise ValueError(f"method={arg.method}: for images, and data={arg.data} are tables")
        side = PATCH[arg.data] // (2 if arg.small else 1)
        return dict(name="vit.ViT", variant="tiny", patch_size=side, pooling="gap")
    if images and not arg.small:
        return dict(name="resnet.ResNet", depth=8, width=16)
    if arg.method == "linear":
        return dict(name="mlp.MLP", widths=())
    if arg.data == "sprites":
        return dict(name="lenet.LeNet5", padding="SAME", widths=(8, 16, 32, 64))
    return dict(name="mlp.MLP", widths=(64, 64) if arg.small else (100, 100))


def set_members(config: ConfigDict, arg: ConfigDict) -> None:
    """What the functions are, and what makes them differ."""
    if arg.method in ("heads", "divdis"):
        config.ensemble = dict(name="multi_head", size=arg.size)
    elif arg.method == "batch_ensemble":
        config.ensemble = dict(name="batch_ensemble", size=arg.size)
    elif arg.method == "e3":
        set_method(config, ConfigDict(dict(method="e3", k=1, members=arg.size)), blocks=(1,))
    elif arg.method not in ALONE:
        config.inference.size = arg.size
    if arg.method in ("vit", "e3"):
        schedule = dict(name="cosine", warmup_steps=50)
        config.optimiser = dict(name="adam", learning_rate=3e-3, schedule=schedule, clip=1.0)
    if arg.method in TOGETHER:
        config.inference.direction = dict(name="together")
    config.objective = dict(
        divdis=dict(name="divdis"),
        d_bat=dict(name="d_bat", steps_each=2 if arg.runlocal else config.steps),
        joint=dict(name="d_bat", joint=True),
        l1=dict(name="disagreement", kind="l1"),
        multi_symmetry=HYPOTHESES,
    ).get(arg.method, dict())
    if arg.method == "multi_symmetry":
        if arg.data in TABLES:
            raise ValueError(f"method={arg.method}: for images, and data={arg.data} are tables")
        config.objective.symmetry = dict(name=SYMMETRY[arg.data])
        config.inference.hyper = dict(
            equivariance=tuple(0.0 if i % 2 else 0.4 for i in range(arg.size)),
            invariance=tuple(0.5 if i % 2 else 0.0 for i in range(arg.size)),
        )
    if arg.method == "d_bat":
        config.steps = arg.size * config.steps
    if arg.method in REPULSIVE:
        space = dict(
            svgd=dict(name="svgd"),
            f_svgd=dict(name="svgd", space="functions"),
            hybrid=dict(name="svgd", space="functional_repulsion"),
            f_wgd=dict(name="wgd", space="functions"),
        )[arg.method]
        if arg.method != "svgd":
            space |= dict(values=arg.compared)
            space |= dict(context=dict(name="other")) if arg.points == "unlabelled" else {}
        config.inference.direction = space
        config.inference.prior = dict(name="gaussian", scale=arg.strength**0.5)
        config.inference.temperature = arg.strength


def set_evaluators(config: ConfigDict, arg: ConfigDict, unlabelled: dict) -> None:
    """What members use, and the one that 16 labels choose, where features are apart."""
    test = dict(split="test")
    config.evaluators = dict(test=dict(name="classification", data=test))
    if arg.data in OFF:
        off = {cue: dict(split=f"off_{cue}") for cue in OFF[arg.data]}
        config.evaluators.cues = dict(name="cues", sets=off, diagonal=test)
        apart = off["core" if arg.data == "latents" else CUES[-1]]
    else:
        simple, others = (dict(split=f"{name}_randomised") for name in ("simple", "complex"))
        config.evaluators.simplicity = dict(
            name="simplicity", data=test, simple_randomised=simple, complex_randomised=others
        )
        config.evaluators.cues = dict(name="cues", sets=dict(simple=others, complex=simple))
        apart = simple
    if arg.method not in ALONE:
        pool = unlabelled | dict(split="unlabelled[:2000]")
        config.evaluators.disambiguation = dict(
            name="disambiguation", data=apart, pool=pool, labels=(4, 16)
        )
