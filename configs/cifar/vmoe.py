"""E3 and V-MoE, fine-tuned on CIFAR-100 and CIFAR-10 at 128 x 128 from released checkpoints.

Published (google-research/vmoe, configs/eee_paper/eee_s32_last2_ilsvrc2012_ft_cifar100.py and
configs/vmoe_paper/vmoe_b16_imagenet21k_randaug_strong_ft_cifar10.py), test accuracy, mean of 3:
  E3-S/32 (K=1, M=2), ILSVRC2012 -> CIFAR-100   81.31 %
  V-MoE-B/16 (K=2), ImageNet-21k -> CIFAR-10    98.7 %
Nothing is published for the other models and pairs.
Settings (same source): SETTINGS and the rest below; 98 % of the training images, batches of 1,024,
SGD with momentum 0.9, gradients clipped at norm 10, warm-up, cosine to 1e-5, no weight decay; head
from zero, capacity factor 1.5 in training and after, routed in groups of 128 images (E3) or 8; S/32
has width 512, 8 blocks, a hidden layer (tanh) before the head and 8 experts in the blocks 5 and 7,
B/16 8 experts in every second block.

Differences from the source: random crops of the padded image, not Inception crops; products of the
experts are float32, not bfloat16; the head's bias starts at 0, not at -10, which makes no
difference to softmax; warm-up of W steps starts at 1 / W of the rate, not at 0.

Hardware and time of the source: a TPUv3-8, 10 minutes. Ours: not measured. The bucket needs
`pip install '.[gcs]'`; a copy on disk: --config.pretrained.path=DIR/eee_s32_last2_ilsvrc2012.
Command: python -m experiments.train --config configs/cifar/vmoe.py:model=e3-S/32,dataset=cifar100 \
    --workdir runs/e3
"""

from ml_collections import ConfigDict

from configs.cifar.wide_resnet import CLASSES, data
from experiments.experiment.base import base, parse_arg, shrink

SIZE = 128
READ = dict(resize=SIZE, size=SIZE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
S32 = dict(
    variant="S/32",
    width=512,
    depth=8,
    num_heads=8,
    mlp_dim=2048,
    representation=512,
    expert_blocks="last 2",
)
SHORT = dict(steps=2_000, rate=0.005, warmup=200)

SETTINGS = {
    "e3-S/32": dict(
        SHORT, backbone=S32, k=1, group_size=128, release="eee_s32_last2_ilsvrc2012", members=2
    ),
    "vmoe-S/32": dict(
        SHORT, backbone=S32, k=2, group_size=128, release="vmoe_s32_last2_ilsvrc2012_randaug_light1"
    ),
    "vmoe-B/16": dict(
        steps=1_000,
        rate=0.0015,
        warmup=100,
        backbone=dict(variant="B/16", expert_blocks="every 2"),
        k=2,
        group_size=8,
        release="vmoe_b16_imagenet21k_randaug_strong",
    ),
}


def get_config(arg: str | None = None) -> ConfigDict:
    """`model`: one of SETTINGS; `dataset`: cifar100 or cifar10; `size`: networks."""
    arg = parse_arg(arg, model=tuple(SETTINGS), dataset=("cifar100", "cifar10"), size=1)
    settings = SETTINGS[arg.model]
    config = base()
    data(config, arg.dataset, pad=SIZE // 8, read=READ, held_out=True)
    config.batch_size = 1_024

    router = dict(
        name="routers.TopK",
        k=settings["k"],
        capacity_factor=1.5,
        group_size=settings["group_size"],
    )
    experts = dict(name="experts.MoE", num_experts=8, router=router)
    config.backbone = dict(name="vit.ViT", experts=experts, **settings["backbone"])
    if "members" in settings:
        config.ensemble = dict(name="e3", size=settings["members"])
    config.head = dict(name="dense.Dense", outputs=CLASSES[arg.dataset])
    if arg.size == 1:  # several networks with zero heads would differ by the routers' noise alone
        config.head.kernel_init = dict(name="zeros_init")
    config.pretrained = dict(
        path=f"gs://vmoe_checkpoints/{settings['release']}",
        layout="vmoe",
        keep=("head/",),
    )
    config.inference.size = arg.size

    config.steps = settings["steps"]
    config.optimiser = dict(
        name="sgd",
        momentum=0.9,
        learning_rate=settings["rate"],
        schedule=dict(
            name="cosine", warmup_steps=settings["warmup"], final=1e-5 / settings["rate"]
        ),
        clip=10.0,
    )
    config.logging.every = 50
    config.checkpoint.every = 500

    config.evaluation.batch_size = 1_024
    config.evaluation.every = 100
    if arg.runlocal:
        tiny = dict(
            variant="tiny",
            patch_size=32,
            width=32,
            depth=2,
            num_heads=2,
            mlp_dim=64,
            expert_blocks="last 1",
        )
        if "representation" in config.backbone:
            tiny["representation"] = 32
        shrink(config, (SIZE, SIZE, 3), CLASSES[arg.dataset], **tiny)
    return config
