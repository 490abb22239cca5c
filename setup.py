"""Installs the library (`uncertainty`), the programs (`experiments`) and their configs."""

import pathlib

from setuptools import find_packages, setup

setup(
    name="uncertainty",
    version="0.1.0",
    description="Scalable ensembles and uncertainty in JAX and Flax",
    long_description=pathlib.Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(
        include=["uncertainty*", "experiments*", "configs*", "studies*", "tools*"]
    ),
    package_data={"uncertainty": ["py.typed"]},
    install_requires=[
        "absl-py",
        "clu>=0.0.12",
        "etils[epath]",
        "flax>=0.12",
        "jax>=0.10",
        "matplotlib",
        "ml_collections>=1.1",
        "numpy>=2.0",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.11",
        "rich",
        "scikit-learn",
        "scipy",
        # tensorflow-datasets reads prepared sets without TensorFlow; it imports the next two
        # without declaring them.
        "tensorflow-datasets>=4.9.9",
        "importlib_resources",
        "pillow",
        "pypng",  # images of 16 bits, of which Pillow keeps 8
    ],
    extras_require={
        # Preparing a tfds set, and writing TensorBoard files, need TensorFlow.
        "tensorflow": ["tensorflow", "tensorboard"],
        # Checkpoints in gs:// buckets, where there is no TensorFlow.
        "gcs": ["gcsfs"],
        # Reading the R files of `tools.prepare_uci`.
        "uci": ["rdata"],
        # `studies.reference`, and the reference row of `studies.sampling`.
        "reference": ["blackjax"],
        "test": ["blackjax", "hypothesis", "mypy>=1.15", "pytest", "pytest-xdist", "ruff"],
    },
)
