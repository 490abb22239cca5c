"""A ResNet with the paper's own shortcuts and PyTorch's padding, and weights with PyTorch's names,
against the forward pass written out in NumPy."""

import jax
import numpy as np
import pytest

from experiments.experiment import readers
from experiments.runtime import storage
from uncertainty import build
from uncertainty.backbones.resnet import ResNet
from uncertainty.backbones.wide_resnet import WideResNet
from uncertainty.build import ConfigError
from uncertainty.restore.plan import plan
from uncertainty.rules import path_of

RNG = np.random.default_rng(0)
EPSILON = 1e-5


def convolve(x, w, stride=1):
    """[B, C, H, W] by [F, C, 3, 3], padded by 1 on every side, as torch.nn.Conv2d."""
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    n = (x.shape[-1] - 3) // stride + 1
    out = np.zeros((len(x), len(w), n, n))
    for i in range(n):
        for j in range(n):
            patch = x[:, :, i * stride : i * stride + 3, j * stride : j * stride + 3]
            out[:, :, i, j] = np.einsum("bchw,fchw->bf", patch, w)
    return out


def forward(x, s, blocks=1):
    """The network of github.com/akamaster/pytorch_resnet_cifar10 by its state dict s."""

    def norm(y, name):
        mean, var, scale, bias = (
            s[f"{name}.{k}"][:, None, None]
            for k in ("running_mean", "running_var", "weight", "bias")
        )
        return (y - mean) / np.sqrt(var + EPSILON) * scale + bias

    x = np.maximum(norm(convolve(x, s["conv1.weight"]), "bn1"), 0)
    for stage in (1, 2, 3):
        for block in range(blocks):
            top, stride = f"layer{stage}.{block}.", 2 if stage > 1 and block == 0 else 1
            y = convolve(x, s[top + "conv1.weight"], stride)
            y = np.maximum(norm(y, top + "bn1"), 0)
            y = norm(convolve(y, s[top + "conv2.weight"]), top + "bn2")
            if stride == 2:
                quarter = y.shape[1] // 4
                x = np.pad(x[:, :, ::2, ::2], ((0, 0), (quarter, quarter), (0, 0), (0, 0)))
            x = np.maximum(y + x, 0)
    return x.mean((2, 3)) @ s["linear.weight"].T + s["linear.bias"]


def state_dict(width=4, prefix=""):
    s = {"conv1.weight": RNG.normal(size=(width, 3, 3, 3)) / 3}

    def norm(name, n):
        s[f"{name}.weight"], s[f"{name}.bias"] = RNG.normal(size=(2, n))
        s[f"{name}.running_mean"], s[f"{name}.running_var"] = (
            RNG.normal(size=n),
            RNG.random(n) + 0.5,
        )
        s[f"{name}.num_batches_tracked"] = np.int64(7)

    norm("bn1", width)
    for stage in (1, 2, 3):
        n, of = width * 2 ** (stage - 1), width * 2 ** max(stage - 2, 0)
        for i, c in ((1, of), (2, n)):
            s[f"layer{stage}.0.conv{i}.weight"] = RNG.normal(size=(n, c, 3, 3)) / 6
            norm(f"layer{stage}.0.bn{i}", n)
    s["linear.weight"], s["linear.bias"] = RNG.normal(size=(10, 4 * width)), RNG.normal(size=10)
    return {prefix + name: np.asarray(a) for name, a in s.items()}


def network(**fields):
    fields = dict(depth=8, width=4, shortcuts="zero_padding", padding="symmetric") | fields
    return build.network(
        dict(
            backbone=dict(name="resnet.ResNet", **fields),
            ensemble=dict(name="single"),
            head=dict(name="dense.Dense", outputs=10),
        )
    )


def restored(s, net):
    """The variables of a network, filled by the rules of `resnet`."""
    variables = jax.eval_shape(
        lambda: net.init(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32), train=False)
    )
    both = {"params": variables["params"], "": {"batch_stats": variables["batch_stats"]}}
    leaves = jax.tree_util.tree_leaves_with_path(both)
    moves = plan(
        {k: np.shape(v) for k, v in s.items()},
        {path_of(k[1:]): v.shape for k, v in leaves},
        "resnet",
    )

    def filled(k, v):
        move = moves[path_of(k[1:])]
        return np.float32(move(s[move.source], v.shape))

    both = jax.tree_util.tree_map_with_path(filled, both)
    return {"params": both["params"], **both[""]}


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_logits_are_those_of_the_published_form(prefix):
    s, x = state_dict(prefix=prefix), RNG.normal(size=(2, 8, 8, 3)).astype(np.float32)
    net = network()
    mean = net.apply(restored(s, net), x, train=False).mean[0]
    plain = {k.removeprefix("module."): v for k, v in s.items()}
    want = forward(x.transpose(0, 3, 1, 2).astype(np.float64), plain)
    np.testing.assert_allclose(mean, want, rtol=2e-4, atol=2e-4)


def test_either_difference_alone_changes_the_logits():
    """Padding and shortcuts matter: the same weights in another network give other logits."""
    s, x = state_dict(), RNG.normal(size=(2, 8, 8, 3)).astype(np.float32)
    variables = restored(s, network())
    ours, same = (network(padding=p).apply(variables, x, train=False).mean
                  for p in ("symmetric", "SAME"))  # fmt: skip
    assert np.abs(ours - same).max() > 0.01
    with pytest.raises(ValueError, match=r"stage2/block0/shortcut/kernel .*: nothing"):
        restored(s, network(shortcuts="projection"))


def test_the_number_of_parameters_is_the_papers():
    net = network(depth=20, width=None)
    shapes = jax.eval_shape(
        lambda: net.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32), train=False)
    )
    assert sum(a.size for a in jax.tree.leaves(shapes["params"])) == 269_722


def test_an_unknown_padding_or_shortcut_is_named():
    with pytest.raises(ValueError, match="padding: 'same'; allowed 'SAME', 'symmetric'"):
        ResNet(padding="same")
    with pytest.raises(ValueError, match="padding: 'valid'; allowed"):
        WideResNet(padding="valid")
    with pytest.raises(ValueError, match="shortcuts: 'A'; allowed 'projection', 'zero_padding'"):
        ResNet(shortcuts="A")


def test_a_file_of_pytorch_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(ConfigError, match=r"net.pth is a file of PyTorch; an .npz file is needed"):
        readers.READERS["resnet"](storage.path(str(tmp_path / "net.pth")))
