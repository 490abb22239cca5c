"""Self-supervision on handwritten digits: features that ignore rotations, tell them, or neither.

    members   particles           each view is turned   the turn is predicted
    base      1                   no                    no
    inv       1                   with probability 0.5  no
    eq        1                   no                    with weight 0.4
    multi     eq, inv and base    in one program, by `inference.hyper`

InfoNCE of two views, random crops of at least half of the area with other brightness and contrast,
at a temperature of 0.2. The head is an online linear probe; `knn` and `symmetry` are probes of the
frozen features after training. 0.5 and 0.4 are those of multi-symmetry ensembles and E-SSL, other
settings are ours and not tuned.

Data: 8 x 8 images of all ten digits.
Hardware and time: not measured yet.
Command: python -m experiments.train --config configs/digits/contrastive.py:members=multi \\
    --workdir runs/contrastive
"""

from ml_collections import ConfigDict

from experiments.experiment.base import base, parse_arg, shrink

EQUIVARIANCE, INVARIANCE = 0.4, 0.5
KINDS = {  # of a particle: weight of the prediction, probability of a turn
    "eq": (EQUIVARIANCE, 0.0),
    "inv": (0.0, INVARIANCE),
    "base": (0.0, 0.0),
}
VIEW = (
    dict(name="crop", scale=(0.5, 1.0), method="bilinear"),
    dict(name="jitter", brightness=0.4, contrast=0.4, p=0.8),
)


def get_config(arg: str | None = None) -> ConfigDict:
    """`members`: see above; `loss`: of the objective `contrastive`; `symmetry`: its name."""
    arg = parse_arg(
        arg,
        members=("base", "inv", "eq", "multi"),
        loss=("info_nce", "nt_xent", "supervised"),
        symmetry=("rotations", "flip", "half_swap"),
    )
    config = base()
    config.data.train = dict(name="digits", split="train")
    config.data.validation = dict(split="validation")
    config.data.test = dict(split="test")
    config.batch_size = 128

    config.backbone = dict(name="lenet.LeNet5", padding="SAME")
    config.head = dict(name="dense.Dense", outputs=10)
    config.objective = dict(
        name="contrastive",
        loss=arg.loss,
        temperature=0.2,
        views=(VIEW, VIEW),
        symmetry=arg.symmetry,
        projector=dict(name="projector.Projector", widths=(128, 128, 64)),
        predictor=dict(name="projector.Projector", widths=(128,), norm=dict(name="norm.LayerNorm")),
    )
    if arg.members in ("inv", "multi"):
        config.objective.invariance = INVARIANCE
    if arg.members in ("eq", "multi"):
        config.objective.equivariance = EQUIVARIANCE
    if arg.members == "multi":
        config.inference.size = len(KINDS)
        equivariance, invariance = zip(*KINDS.values(), strict=True)
        config.inference.hyper = dict(equivariance=equivariance, invariance=invariance)

    config.steps = 1_000
    config.optimiser = dict(
        name="adam",
        learning_rate=1e-3,
        schedule=dict(name="cosine", warmup_steps=50),
        weight_decay=((".*kernel", 1e-4),),
    )

    config.evaluation.batch_size = 200
    config.evaluators = dict(
        test=dict(name="classification"),
        knn=dict(name="knn_probe", train=dict(split="train"), k=20),
        symmetry=dict(name="symmetry_probe", train=dict(split="train"), symmetry=arg.symmetry),
    )
    return shrink(config) if arg.runlocal else config
