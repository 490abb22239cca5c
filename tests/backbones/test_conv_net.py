"""The plain convolutional network against correlations, and as the prior of an epinet."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate2d

from uncertainty import build
from uncertainty.backbones.conv_net import ConvNet


def test_layers_are_strided_correlations_and_relus(random_variables):
    """'SAME' for even sizes and strides of 2 pads one row less above than below."""
    module = ConvNet(channels=(3, 2), kernel_sizes=(3, 1), strides=(2, 3))
    x = np.random.default_rng(0).normal(size=(1, 2, 8, 6, 2)).astype("float32")
    params = random_variables(module, x, train=False)["params"]
    y = module.apply({"params": params}, x, train=False)
    for b in range(2):
        image = x[0, b].astype("float64")
        for i, (pad, stride) in enumerate((((0, 1), 2), ((0, 0), 3))):
            kernel, bias = (
                np.asarray(params[f"conv{i}"][n], "float64") for n in ("kernel", "bias")
            )
            padded = np.pad(image, (pad, pad, (0, 0)))
            maps = [
                sum(correlate2d(padded[..., c], kernel[..., c, f], "valid")
                    for c in range(image.shape[-1]))[::stride, ::stride] + bias[f]
                for f in range(kernel.shape[-1])
            ]  # fmt: skip
            image = np.maximum(np.stack(maps, -1), 0)
        assert image.shape == (2, 1, 2)
        np.testing.assert_allclose(y[0, b], image.ravel(), rtol=1e-4, atol=1e-5)


def test_the_published_priors_have_their_sizes():
    """Of CIFAR's 32 pixels remain 4 x 4 x 4 numbers, of ImageNet's 224 5 x 5 x 8."""
    imagenet = dict(channels=(4, 8, 8), kernel_sizes=(10, 10, 3), strides=(5, 5, 2))
    for fields, pixels, features in (({}, 32, 64), (imagenet, 224, 200)):
        x = jnp.zeros((1, 1, pixels, pixels, 3))
        make = functools.partial(ConvNet(**fields).init_with_output, train=False)
        assert jax.eval_shape(make, jax.random.key(0), x)[0].shape == (1, 1, features)


def test_an_epinet_of_images_has_fixed_convolutional_functions():
    config = dict(
        backbone=dict(name="lenet.LeNet5", padding="SAME"),
        ensemble=dict(name="epinet", size=5, index=3, prior_scale=0.0,
                      additive=dict(name="conv_net.ConvNet", channels=(2, 4))),
        head=dict(name="dense.Dense", outputs=10),
        likelihood="softmax",
    )  # fmt: skip
    model, x = build.model(config), jnp.zeros((2, 8, 8, 1))
    params, collections = jax.eval_shape(model.init, jax.random.key(0), x)
    prior = collections["prior"]["additive"]["variables"]["params"]
    assert prior["body"]["conv1"]["kernel"].shape == (3, 5, 5, 2, 4)  # one for each of z's entries
    assert prior["logits"]["kernel"].shape == (3, 16, 10) and "prior" not in params
    forward = functools.partial(model.forward, train=False)
    latent = jax.eval_shape(forward, params, collections, x, jax.random.key(0))[0]
    assert latent.mean.shape == (5, 2, 10)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (dict(channels=()), r"channels: \(\); one layer or more"),
        (dict(channels=(4, 0)), r"channels: \(4, 0\); one layer or more, at least 1 each"),
        (dict(kernel_sizes=(5, 5)), r"kernel_sizes: \(5, 5\) for 3 layers; a number for each"),
        (dict(strides=0), r"strides: \(0, 0, 0\) for 3 layers; .* at least 1"),
    ],
)
def test_what_cannot_be_is_refused(fields, why):
    with pytest.raises(ValueError, match=why):
        ConvNet(**fields)
