"""What `python -m experiments.compile --table configs/scaling.py` compiles.

Three large ensembles on v5e slices of 8 to 256 chips, with the batches of their configs: a part of
a batch (`accumulate`) has at most 64 images a chip, 128 of ResNet-50. docs/scaling.md says what
follows. Their data are not needed.
"""

SLICES = {8: "v5e:2x4", 16: "v5e:4x4", 64: "v5e:8x8", 256: "v5e:16x16"}  # by chips
VIT, RESNET50 = "configs/imagenet/vit.py", "configs/imagenet/resnet50.py"
E3 = {
    "backbone.variant": "B/16",
    "backbone.width": 768,
    "backbone.depth": 12,
    "backbone.num_heads": 12,
    "backbone.mlp_dim": 3072,
    "backbone.representation": 768,
    "backbone.experts.num_experts": 32,
}
SVGD = {
    "inference.direction": dict(name="svgd"),
    "inference.prior": dict(name="gaussian", scale=1.0),
    "inference.executor": "scan",
    "optimiser.l2": (),
}


def ensemble(chips: int) -> dict:
    """A network on each of 8 chips, then the batch over more of them."""
    mesh = dict(particle=8, data=chips // 8)
    return {"mesh": mesh, "inference.accumulate": max(1, 128 // chips)}


def svgd(chips: int, particle: int) -> dict:
    """Particles over `particle` chips, and the batch over the others."""
    data = chips // particle
    accumulate = max(1, 4096 // data // 128)
    return SVGD | {"mesh": dict(particle=particle, data=data), "inference.accumulate": accumulate}


def e3(chips: int) -> dict:
    """An expert on each chip if there are as many, and groups over all chips."""
    expert = min(chips, 32)
    mesh = dict(expert=expert, data=chips // expert)
    return E3 | {"mesh": mesh, "inference.accumulate": max(1, 128 // chips)}


ROWS = [
    *(("8 ViT-B/16", f"{VIT}:variant=B/16,size=8", chips, ensemble(chips)) for chips in SLICES),
    ("SVGD of 50 ResNet-50", f"{RESNET50}:size=50", 8, svgd(8, 2)),
    *(
        ("SVGD of 48 ResNet-50", f"{RESNET50}:size=48", chips, svgd(chips, min(chips, 16)))
        for chips in SLICES
    ),
    *(
        ("E3-B/16 with 32 experts", "configs/imagenet/vmoe.py:members=2", chips, e3(chips))
        for chips in SLICES
    ),
]


def get_table() -> dict:
    """title, programs, and rows of label, config, fields and topology."""
    return dict(
        title="From 8 to 256 chips",
        programs=("shapes", "train"),
        rows=[
            dict(label=label, config=config, fields=fields, topology=SLICES[chips])
            for label, config, chips, fields in ROWS
        ],
    )
