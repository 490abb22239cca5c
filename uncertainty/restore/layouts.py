"""Rules for the arrays of known checkpoints (see `uncertainty/restore/plan.py`), by layout.

  own            another run of this project: the same paths
  vit            ViTs as vision_transformer (AugReg) and big_vision save them, scanned blocks too
  vmoe           V-MoE and E3 as google-research/vmoe releases them, or saves them in training
  transformers   ViTForImageClassification of the transformers library
  resnet         ResNets with the names of torchvision, as most of PyTorch's for CIFAR have them too

Biases are tiled over members, as BatchEnsemble needs; routers are reshaped, which turns a V-MoE
into an E3. A hidden layer between features and head (`pre_logits`) needs
`vit.ViT(representation=...)`.
"""

from collections.abc import Sequence
from typing import Any

Rules = Sequence[Sequence[Any]]


def _flax_vit() -> Rules:
    """ViTs of vision_transformer (AugReg), big_vision (also with scanned blocks) and V-MoE."""
    top = "(?:params/)?"
    numbered = (
        top + r"(?:Transformer|Encoder)/encoderblock_(?P<n>\d+)/",
        "backbone/block{n:0>2}/",
        (),
    )
    scanned = (top + "Transformer/encoderblock/", "backbone/block{i:02}/", ("split",))
    # The parts of a training state other than its parameters.
    rules: list[tuple[Any, ...]] = [("(?:opt|opt_state|chrono|rngs|step)(?:/.*)?", None)]
    for source, target, ops in (numbered, scanned):
        attention = source + "(?:MultiHeadDotProductAttention_[01]|SelfAttention)/"
        qkv, out = "(?P<p>query|key|value)/", "out/"
        dense = source + r"(?:MlpBlock_[03]|Mlp)/Dense_(?P<d>[01])/"
        expert = source + r"Moe/Mlp/Dense_(?P<d>[01])/(?P<p>kernel|bias)"
        to, ff = target + "attention/", target + "feed_forward/"
        rules += [
            (source + "LayerNorm_0/(?P<p>scale|bias)", target + "norm0/{p}", *ops),
            (source + "LayerNorm_[12]/(?P<p>scale|bias)", target + "norm1/{p}", *ops),
            (attention + qkv + "kernel", to + "{p}/kernel", *ops, ("merge", 1)),  # [D, H, d]
            (attention + qkv + "bias", to + "{p}/bias", *ops, ("merge", 0), "tile"),
            (attention + out + "kernel", to + "out/kernel", *ops, ("merge", 0)),  # [H, d, D]
            (attention + out + "bias", to + "out/bias", *ops, "tile"),
            (dense + "kernel", ff + "dense{d}/kernel", *ops),
            (dense + "bias", ff + "dense{d}/bias", *ops, "tile"),
            (expert, ff + "experts/dense{d}/{p}", *ops),
            (source + "Moe/Router/dense/kernel", ff + "router/kernel", *ops, "reshape"),
        ]
    place = top + "(?:Transformer/|Encoder/)?(?:posembed_input/)?pos_embedding"
    norm = top + "(?:Transformer|Encoder)/encoder_norm/(?P<p>scale|bias)"
    return (
        *rules,
        (top + "embedding/kernel", "backbone/embedding/kernel"),
        (top + "embedding/bias", "backbone/embedding/bias", "tile"),
        (top + "cls", "backbone/class_token"),
        (place, "backbone/position_embedding", "positions"),
        (norm, "backbone/norm/{p}"),
        (top + "pre_logits/(?P<p>kernel|bias)", "backbone/pre_logits/{p}"),
        (top + "head/kernel", "head/logits/kernel"),
        (top + "head/bias", "head/logits/bias", "tile"),
    )


def _transformers() -> Rules:
    """ViTForImageClassification of the transformers library, its state dict and files."""
    top = r"(?:vit\.)?"
    source, target = top + r"(?:encoder\.layer|layers)\.(\d+)\.", "backbone/block{1:0>2}/"
    dense = {  # names in files and before version 5, and since
        "attention/query": r"attention\.(?:attention\.query|q_proj)",
        "attention/key": r"attention\.(?:attention\.key|k_proj)",
        "attention/value": r"attention\.(?:attention\.value|v_proj)",
        "attention/out": r"attention\.(?:output\.dense|o_proj)",
        "feed_forward/dense0": r"(?:intermediate\.dense|mlp\.fc1)",
        "feed_forward/dense1": r"(?:output\.dense|mlp\.fc2)",
    }
    layers = [(source + name, target + layer) for layer, name in dense.items()]
    norms = [
        (source + f"layernorm_{name}", target + f"norm{i}")
        for i, name in enumerate(("before", "after"))
    ]
    norms.append((top + "layernorm", "backbone/norm"))
    layers.append(("classifier", "head/logits"))
    patch = top + r"embeddings\.patch_embeddings\.projection\."
    return (
        *((name + r"\.weight", layer + "/kernel", "transpose") for name, layer in layers),
        *((name + r"\.bias", layer + "/bias", "tile") for name, layer in layers),
        *((name + r"\.weight", layer + "/scale") for name, layer in norms),
        *((name + r"\.bias", layer + "/bias") for name, layer in norms),
        (patch + "weight", "backbone/embedding/kernel", ("transpose", 2, 3, 1, 0)),
        (patch + "bias", "backbone/embedding/bias", "tile"),
        (top + r"embeddings\.cls_token", "backbone/class_token"),
        (top + r"embeddings\.position_embeddings", "backbone/position_embedding", "positions"),
    )


def _torch_resnet() -> Rules:
    """ResNets of torchvision, and of repositories for CIFAR that name their layers alike.

    conv1, bn1, layer1.0.conv1, layer1.0.bn1, ..., fc; a projection is downsample or shortcut, the
    last layer fc, linear or classifier. The network needs padding='symmetric'.
    """
    top = r"(?:module\.)?"  # of DataParallel
    block, stage = top + r"layer(\d+)\.(\d+)\.", "backbone/stage{1}/block{2}/"
    projection = block + r"(?:downsample|shortcut)\."
    convs = [(top + "conv1", "backbone/stem/conv"), (projection + "0", stage + "shortcut")]
    norms = [(top + "bn1", "backbone/stem/norm"), (projection + "1", stage + "shortcut_norm")]
    for i in range(3):
        convs.append((block + f"conv{i + 1}", stage + f"conv{i}"))
        norms.append((block + f"bn{i + 1}", stage + f"norm{i}"))
    last = top + r"(?:fc|linear|classifier)\."
    parts = dict(weight="scale", bias="bias")
    averages = dict(running_mean="mean", running_var="var")
    return (
        *((name + r"\.weight", to + "/kernel", ("transpose", 2, 3, 1, 0)) for name, to in convs),
        *((n + r"\." + a, to + "/" + b) for n, to in norms for a, b in parts.items()),
        *((n + r"\." + a, f"batch_stats/{to}/{b}") for n, to in norms for a, b in averages.items()),
        (r".*\.num_batches_tracked", None),
        (last + "weight", "head/logits/kernel", "transpose"),
        (last + "bias", "head/logits/bias", "tile"),
    )


LAYOUTS: dict[str, Rules] = {
    "own": (
        ("routing/.*", None),  # counts of the last step
        # 'frozen' has parameters that were not trained.
        ("(?:frozen/)?(.*/router/kernel)", "{1}", "reshape"),
        ("(?:frozen/)?(backbone/position_embedding)", "{1}", "positions"),
        ("(?:frozen/)?(.*/bias)", "{1}", "tile"),
        ("(?:frozen/)?(.*)", "{1}"),
    ),
    "vit": _flax_vit(),
    "vmoe": _flax_vit(),
    "transformers": _transformers(),
    "resnet": _torch_resnet(),
}
