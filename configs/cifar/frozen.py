"""Heads on the features of a frozen ResNet-56: CIFAR-10, with clean and with human labels.

Features are the 64 means over space of the last stage of the ResNet-56 of github.com/akamaster/
pytorch_resnet_cifar10 (its test error of 6.61 % is reproduced), computed once:

    python -m tools.frozen_features --weights resnet56.npz --data DIR

`labels` are the clean ones or those that people gave (CIFAR-10N, Wei et al. 2022): `aggregate` (the
majority of three, 9 % wrong), `random1` (one of the three, 17 %) and `worst` (a wrong one if there
is one, 40 %). The network was trained on all 50,000 images with their clean labels. So there are no
held-out training data: calibration and conformal sets use each half of the test images for the
other (`evaluators/halves.py`). And what a head learns from noisy labels is on features that know
the clean ones, of images that the network has memorised. The network's trunk has no bound on its
distances, so that distances of a GP on its features are those of the features, not of images.

Methods, 1,000 steps of 256 (five epochs) of Adam at 1e-3, cosine; latents that are not certain are
integrated by 64 draws:

    released   the network's own last layer, not trained further (one step at a rate of 0)
    dense      a dense head, trained anew
    mlp        one hidden layer of 128
    ensemble   5 of these
    svgd       5 of these by SVGD, prior N(0, 1)
    dropout    one of these, Monte Carlo dropout of .1 with 10 masks
    laplace    dense with a last-layer Laplace, prior N(0, 1), and L2 of that prior
    gp         the head of SNGP, on the layer-normalised features
    het        HET, 6 factors
    hetsngp    HetSNGP: het over gp

Nothing is tuned: the fields of `gp`, `het` and `hetsngp` are those of noisy_fashion_mnist.py, rates
and sizes were set once.

Tables: python -m experiments.reproduce cifar10_frozen, with clean labels
        python -m experiments.reproduce cifar10n_frozen
"""

from ml_collections import ConfigDict

from configs.methods import set_method
from configs.small_images.noisy_fashion_mnist import HET, SNGP
from experiments.experiment.base import base, parse_arg, shrink

FOLDER = "~/frozen_cifar10"  # of the files that frozen_features writes
CLASSES, FEATURES, TRAIN = 10, 64, 50_000
LABELS = dict(clean="y", aggregate="aggregate", random1="random1", worst="worst")
METHODS = (
    "dense",
    "released",
    "mlp",
    "ensemble",
    "svgd",
    "dropout",
    "laplace",
    "gp",
    "het",
    "hetsngp",
)
LAYERS = ("stage1", "stage2")  # features of earlier stages
FITTED = (
    "mahalanobis",
    "relative_mahalanobis",
    "knn",
    "energy",
    "react",
    "dice",
    "grad_norm",
    "kl_matching",
    "residual",
    "vim",
    "odin",
)
OUTSIDE = ("cifar100", "mnist", "dtd", "gtsrb")


def get_config(arg: str | None = None) -> ConfigDict:
    """`method`: one of METHODS; `labels`: one of LABELS; `steps`: of training."""
    arg = parse_arg(arg, method=METHODS, labels=tuple(LABELS), steps=1_000)
    config = base()

    def file(name: str, **fields) -> dict:
        return dict(name="npz", path=f"{FOLDER}/{name}.npz", num_classes=CLASSES, **fields)

    config.data.train = file("train", split="train", y=LABELS[arg.labels])
    config.batch_size = 256

    small = arg.method in ("mlp", "ensemble", "svgd", "dropout")
    config.backbone = dict(name="mlp.MLP", widths=(128,) if small else ())
    config.head = dict(name="dense.Dense", outputs=CLASSES)
    config.likelihood = dict(name="softmax", samples=64)
    config.steps = arg.steps
    config.optimiser = dict(name="adam", learning_rate=1e-3, schedule=dict(name="cosine"))
    if arg.method == "released":
        own = ((".*", "{0}"),)  # the file has this project's names
        config.pretrained = dict(path=f"{FOLDER}/head.npz", layout="resnet", rules=own)
        config.optimiser.learning_rate, config.steps = 0.0, 1
    if arg.method in ("ensemble", "svgd"):
        config.inference.size = 5
    if arg.method == "svgd":
        config.inference.direction = dict(name="svgd")
        config.inference.prior = dict(name="gaussian", scale=1.0)
    if arg.method == "dropout":
        config.ensemble = dict(name="mc_dropout", size=10, rate=0.1)
    if arg.method == "laplace":
        config.head = dict(name="laplace.Laplace", outputs=CLASSES)
        config.optimiser.l2 = (("head/.*", 1 / TRAIN),)
        config.stages = (dict(name="laplace"),)
    method = dict(gp="sngp", het="het", hetsngp="hetsngp").get(arg.method, "deterministic")
    set_method(config, method, sngp=SNGP, het=HET, bound=None)
    if arg.method in ("gp", "hetsngp"):
        config.optimiser.l2 = (("head/(mean/)?logits/kernel", 1 / TRAIN),)
    config.logging.every = 500
    config.checkpoint.every = 10_000
    config.evaluation.batch_size = 2_000

    clean, full = arg.labels == "clean", not arg.runlocal  # stand-ins have no further entries
    fitted = clean and arg.method in ("dense", "released")
    people = ("human",) if full else ()
    test = file("test", split="test", entries=people)
    evaluators = dict(
        test=dict(name="classification", data=test),
        halves=dict(name="halves", data=test, sets=("lac", "aps"), human=(*people, None)[0]),
    )
    if people:
        evaluators["human"] = dict(name="human", data=test)
    if clean:
        outside = {name: file(name, split="test", entries=()) for name in OUTSIDE}
        evaluators["ood"] = dict(name="ood", data=test, sets=outside)
    if fitted:
        scores = FITTED if full else ("mahalanobis", "vim", "odin")
        evaluators["ood"] |= dict(fit=file("train", split="train"), scores=scores)
    if fitted and full:  # an evaluator of its own, so that all rows read the same test data
        every = {name: file(name, split="test", entries=LAYERS) for name in ("test", *OUTSIDE)}
        evaluators["layers"] = dict(
            name="ood",
            data=every.pop("test"),
            sets=every,
            fit=file("train", split="train", entries=LAYERS),
            scores=("layers_mahalanobis",),
            layers=LAYERS,
        )
    if clean and full:
        data = file("corrupted", split="test", entries=("corruption", "severity"))
        evaluators["corrupted"] = dict(name="corrupted", data=data)
    config.evaluators = evaluators
    return shrink(config, (FEATURES,), CLASSES) if arg.runlocal else config
