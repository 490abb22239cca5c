"""Near and far out-of-distribution sets of OpenOOD v1.5 (Zhang et al. 2023), by their tfds names.

Its metrics are AUROC, AUPR (in and out) and FPR95 with in-distribution as the positive class,
`auroc_*`, `aupr_in_*`, `aupr_out_*` and `fpr95_in_*` of the evaluator `ood`, averaged over the sets
of a group. It uses parts of some sets: 9,000 test images of CIFAR-100 (1,000 are for tuning), Tiny
ImageNet without images that show classes of CIFAR, and of SVHN, Places365 and iNaturalist such as
show none of the in-distribution classes; with the whole sets of tfds, say so beside the numbers.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class OodSet(NamedTuple):
    """An out-of-distribution set."""

    tfds: str | None  # its name there; None if tfds has none
    split: str = "test"


_FAR = dict(
    mnist=OodSet("mnist"),
    svhn=OodSet("svhn_cropped"),
    texture=OodSet("dtd"),
    places365=OodSet("places365_small"),
)
_TIN = OodSet(None)  # Tiny ImageNet
_IMAGENET = dict(
    near=dict(ssb_hard=OodSet(None), ninco=OodSet(None)),
    far=dict(
        inaturalist=OodSet("i_naturalist2017", "validation"),
        texture=OodSet("dtd"),
        openimage_o=OodSet(None),
    ),
)
SETS: Mapping[str, Mapping[str, Mapping[str, OodSet]]] = dict(
    mnist=dict(
        near=dict(notmnist=OodSet(None), fashion_mnist=OodSet("fashion_mnist")),
        far=dict(
            texture=OodSet("dtd"),
            cifar10=OodSet("cifar10"),
            tin=_TIN,
            places365=OodSet("places365_small"),
        ),
    ),
    cifar10=dict(near=dict(cifar100=OodSet("cifar100"), tin=_TIN), far=_FAR),
    cifar100=dict(near=dict(cifar10=OodSet("cifar10"), tin=_TIN), far=_FAR),
    imagenet=_IMAGENET,
)


def evaluator(dataset: str, data: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """The evaluator `ood` of a config, for the sets that tfds has.

    Groups 'near' and 'far' are there if tfds has all their sets.

    Args:
      dataset: a key of SETS.
      data: the spec of the in-distribution test data.
      **fields: of every set, such as `size`, and of the evaluator (`scores`, `fit`, `layers`).
    """
    own = {k: fields.pop(k) for k in ("scores", "fit", "layers") if k in fields}
    every = SETS[dataset]
    sets = {
        name: dict(name=one.tfds, split=one.split, **fields)
        for group in every.values()
        for name, one in group.items()
        if one.tfds
    }
    groups = {g: tuple(of) for g, of in every.items() if all(one.tfds for one in of.values())}
    return dict(name="ood", data=data, sets=sets, groups=groups, **own)
