"""What `python -m experiments.compile --table configs/accelerators.py` compiles, for which slices.

Every kind of full-size config for v5e:4x4, and some for v5e:2x4. Their data are not needed.
"""

WRN, VIT, VMOE = (f"configs/cifar/{name}.py" for name in ("wide_resnet", "vit", "vmoe"))
RESNET50, IMAGENET_VIT, IMAGENET_VMOE = (
    f"configs/imagenet/{name}.py" for name in ("resnet50", "vit", "vmoe")
)
BATCH_ENSEMBLE = dict(
    name="batch_ensemble", size=4, fast_weights=dict(name="batch_ensemble.gaussian", stddev=0.5)
)
SVGD = {
    "inference.direction": dict(name="svgd"),
    "inference.prior": dict(name="gaussian", scale=1.0),
    "optimiser.l2": (),
    "mesh": dict(particle=2),
}
FOUR = {"mesh": dict(particle=4)}

LARGE, SMALL = "v5e:4x4", "v5e:2x4"
ROWS = [  # label, config, fields, topology
    ("CIFAR ResNet-20", "configs/cifar/resnet.py:depth=20", {}, LARGE),
    ("ImageNet V-MoE-S/32", IMAGENET_VMOE, {}, LARGE),
    ("ImageNet E3-S/32", f"{IMAGENET_VMOE}:members=2", {}, LARGE),
    ("ImageNet ViT-S/16", IMAGENET_VIT, {}, LARGE),
    ("ImageNet ViT-B/16", f"{IMAGENET_VIT}:variant=B/16", {}, LARGE),
    ("ImageNet ViT-B/16, HetSNGP", f"{IMAGENET_VIT}:variant=B/16,method=hetsngp", {}, LARGE),
    ("ImageNet ViT-S/16, BatchEnsemble of 4", IMAGENET_VIT, {"ensemble": BATCH_ENSEMBLE}, LARGE),
    ("CIFAR V-MoE-B/16, experts sharded", f"{VMOE}:model=vmoe-B/16,dataset=cifar10",
     {"mesh": dict(expert=8)}, LARGE),
    ("CIFAR E3-S/32", VMOE, {}, LARGE),
    ("CIFAR ViT-B/32", VIT, {}, LARGE),
    ("ImageNet ResNet-50", RESNET50, {}, LARGE),
    ("CIFAR WRN-28-10", WRN, {}, LARGE),
    ("CIFAR ResNet-20, SVGD of 10", "configs/cifar/resnet.py:depth=20,size=10", SVGD, LARGE),
    ("ImageNet ResNet-50, SNGP", f"{RESNET50}:method=sngp", {}, LARGE),
    ("ImageNet ResNet-50, HetSNGP", f"{RESNET50}:method=hetsngp", {}, LARGE),
    ("CIFAR WRN-28-10, ensemble of 4", f"{WRN}:size=4", FOUR, LARGE),
    ("CIFAR WRN-28-10, HetSNGP", f"{WRN}:method=hetsngp", {}, LARGE),
    ("ImageNet V-MoE-S/32", IMAGENET_VMOE, {}, SMALL),
    ("ImageNet ViT-S/16", IMAGENET_VIT, {}, SMALL),
    ("CIFAR ResNet-20", "configs/cifar/resnet.py:depth=20", {}, SMALL),
    ("CIFAR WRN-28-10", WRN, {}, SMALL),
    ("CIFAR WRN-28-10, ensemble of 4", f"{WRN}:size=4", FOUR, SMALL),
    ("CIFAR WRN-28-10, HetSNGP", f"{WRN}:method=hetsngp", {}, SMALL),
]  # fmt: skip


def get_table() -> dict:
    """title, and rows of label, config, fields and topology."""
    names = ("label", "config", "fields", "topology")
    return dict(
        title="Programs compiled for TPU slices",
        rows=[dict(zip(names, row, strict=True)) for row in ROWS],
        programs=("train",),  # predictions take as long to compile again; --programs predict
    )
