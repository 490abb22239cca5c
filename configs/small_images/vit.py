"""Tiny ViTs on Fashion-MNIST: dense, sparse, and efficient and deep ensembles of both.

The comparison of "Sparse MoEs meet efficient ensembles" (Allingham et al. 2022), which needs
JFT-300M and whose tables could not be checked here, so none of its numbers are shown. The ViT has
16 patches of 7 x 7, width 32, 4 blocks, 2 heads, MLPs of 64, and the mean over tokens as features.

Methods: `vit`; `mc_dropout` with two masks; `mimo` with two inputs; `batch_ensemble`, two members
by fast weights in the feed-forward layers of the last two blocks; `vmoe`, with 8 experts there;
`e3`, with the experts in as many blocks as `members`; and its two halves `only_tiling` and
`only_partitioning`. `size` makes a deep ensemble of any of them.

Matched in FLOPs as in the paper: all have the same dense parts, and each token has as many experts
in E3 (k, members) as in V-MoE with k * members. Everything after the first experts is computed for
each member, so E3 costs somewhat more than that V-MoE, and less than as many networks; the
evaluator `flops` counts how much.

Settings follow the released V-MoE and E3 (google-research/vmoe): experts in the last two blocks (2
and 3 of 0 to 3; their 'last 2' of four would be 1 and 3, with less to share), router noise with
standard deviation 1 / E, importance and load losses of 0.005 each, a capacity factor of 1.5 as in
fine-tuning, in prediction too.

Experts start equal, as in the source, so that members differ only by their routers: they disagree
on 1 to 2.4 % of the images. `backbone.experts.split_rngs` initialises each expert differently.

Differences from the source: training from scratch on 60,000 images, for under three epochs, so that
80 runs take hours, not days, on 2 cores; it ends before the accuracy has converged; warm-up starts
at 1/100 of the rate, not at 0.

Hardware and time: CPU, 18 ms a step for the ViT on one core, 25 for V-MoE with k = 1.
Command: python -m experiments.train --config configs/small_images/vit.py:method=e3,members=2 \\
    --workdir runs/e3
Table: python -m experiments.reproduce sparse_fashion_mnist
Fashion-MNIST without a network: python -m tools.prepare_fashion_mnist --help
"""

from ml_collections import ConfigDict

from experiments.experiment.base import base, parse_arg, shrink

SHAPE, CLASSES = (28, 28, 1), 10
METHODS = (
    "vit",
    "mc_dropout",
    "mimo",
    "batch_ensemble",
    "vmoe",
    "e3",
    "only_tiling",
    "only_partitioning",
)
READ = dict(mean=0.286, std=0.353)  # of the training pixels
HALVES = dict(only_tiling=dict(partition=False), only_partitioning=dict(tile=False))


def get_config(arg: str | None = None) -> ConfigDict:
    """`method`: one of METHODS; `k`: experts per token and member; `members`: in each network;
    `size`: networks."""
    arg = parse_arg(arg, method=METHODS, k=1, members=2, size=1)
    config = base()
    test = dict(split="test")

    config.data.train = dict(name="fashion_mnist", split="train", **READ)
    config.batch_size = 64

    config.backbone = dict(
        name="vit.ViT",
        variant="tiny",
        patch_size=7,
        width=32,
        depth=4,
        num_heads=2,
        mlp_dim=64,
        pooling="gap",
    )
    config.head = dict(name="dense.Dense", outputs=CLASSES)
    set_method(config, arg, blocks=(1,) if arg.runlocal else (2, 3))
    config.inference.size = arg.size

    config.steps = 2_500
    config.optimiser = dict(
        name="adam",
        learning_rate=6e-3,
        schedule=dict(name="cosine", warmup_steps=100),
        clip=1.0,
        weight_decay=((".*kernel", 0.05),),
    )
    config.logging.every = 100
    config.checkpoint.every = 2_500

    elsewhere = {n: dict(name=n, split="test", **READ) for n in ("kmnist", "mnist")}
    config.evaluators = dict(
        test=dict(name="classification", data=test),
        corruption=dict(
            name="corruption",
            data=test | dict(split="test[:1000]"),
            kinds=("gaussian_noise", "gaussian_blur", "contrast", "rotation", "translation"),
            severities=(1, 3, 5),
        ),
        ood=dict(name="ood", data=test, sets=elsewhere),
        few_shot=dict(
            name="few_shot",
            sets=dict(
                digits=dict(
                    train=dict(name="digits", split="train", upsample=28, **READ),
                    test=dict(name="digits", split="validation+test", upsample=28, **READ),
                ),
                # Shots from the test set, so that its files suffice.
                kmnist=dict(
                    train=dict(name="kmnist", split="test[:30%]", **READ),
                    test=dict(name="kmnist", split="test[70%:]", **READ),
                ),
            ),
        ),
        flops=dict(name="flops"),
    )
    if arg.runlocal:
        shrink(config, SHAPE, CLASSES, width=16, depth=2)
        config.evaluators.few_shot.shots = (1, 5)
        for spec in config.evaluators.few_shot.sets.kmnist.values():
            spec.size = 320  # so that every class has enough examples
    return config


def set_method(config: ConfigDict, arg: ConfigDict, blocks: tuple[int, ...]) -> None:
    """Turns a dense ViT into `arg.method`, with experts or fast weights in `blocks`."""
    if arg.method == "mc_dropout":
        config.ensemble = dict(name="mc_dropout", size=arg.members, rate=0.1)
    if arg.method == "mimo":
        config.ensemble = dict(name="mimo", size=arg.members)
    if arg.method == "batch_ensemble":
        config.ensemble = dict(
            name="batch_ensemble",
            size=arg.members,
            fast_weights=dict(name="batch_ensemble.gaussian", stddev=0.5),
            where=f"block0[{''.join(map(str, blocks))}]/feed_forward",
        )
    if arg.method in ("vmoe", "e3", *HALVES):
        config.backbone.experts = dict(
            name="experts.MoE",
            num_experts=8,
            router=dict(name="routers.TopK", k=arg.k, capacity_factor=1.5),
        )
        config.backbone.expert_blocks = blocks
    if arg.method in ("e3", *HALVES):
        config.ensemble = dict(name="e3", size=arg.members, **HALVES.get(arg.method, {}))
