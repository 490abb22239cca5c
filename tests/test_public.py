"""The public API: what is exported, its doctests, and that tutorials need nothing else."""

import ast
import doctest
import importlib
import inspect
import pathlib
import pkgutil
import re
import runpy
import sys
import tempfile
import typing

import pytest

import uncertainty
from uncertainty import conformal, metrics, ood, posthoc

ROOT = pathlib.Path(__file__).parent.parent
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.py"))
# Public modules, of which names without a leading underscore are public too.
MODULES = ("uncertainty.priors", "experiments.experiment.base", "experiments.evaluators")
PUBLIC = {
    "uncertainty": set(uncertainty.__all__),
    **{package.__name__: set(package.__all__) for package in (conformal, metrics, ood, posthoc)},
    "experiments": {"load_run", "Run"},
}


def test_every_export_is_what_type_checkers_see():
    """The imports under TYPE_CHECKING, __all__, and the objects themselves agree."""
    tree = ast.parse((ROOT / "uncertainty" / "__init__.py").read_text())
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {a.name: node.module for node in checked.body for a in node.names}
    assert sorted(seen) == sorted(uncertainty.__all__) == sorted(set(uncertainty.__all__))
    for name, module in seen.items():
        value = getattr(uncertainty, name)
        assert value is getattr(importlib.import_module(module), name)
        assert value.__doc__, name
    assert set(uncertainty.__all__) <= set(dir(uncertainty))
    files = {module.name for module in pkgutil.iter_modules(uncertainty.__path__)}
    assert not files & seen.keys()  # an import of a file would take its export's place
    with pytest.raises(AttributeError, match="no attribute 'softmaxx'"):
        uncertainty.softmaxx  # noqa: B018


@pytest.mark.parametrize("package", [conformal, ood, posthoc], ids=lambda p: p.__name__)
def test_packages_export_the_method_of_each_file(package):
    """As functions: a file of the same name must not take their place, in whatever order."""
    files = {m.name for m in pkgutil.iter_modules(package.__path__) if m.name[0] != "_"}
    assert files <= set(package.__all__) <= set(dir(package))
    assert package.__all__ == sorted(package.__all__, key=lambda name: (name.islower(), name))
    for name in package.__all__:
        value = getattr(package, name)
        assert callable(value) and value.__doc__, name
        if name in files:
            module = importlib.import_module(f"{package.__name__}.{name}")
            assert value is getattr(module, name)
            hints = typing.get_type_hints(value)
            assert set(inspect.signature(value).parameters) | {"return"} == set(hints), name
    assert set(package.__all__) - files == FURTHER[package.__name__]


# What packages export besides.
FURTHER = {
    "uncertainty.conformal": {"areas", "outline", "spread", "volumes"},
    "uncertainty.ood": {"LastLayer", "Outputs"},
    "uncertainty.posthoc": {"OfMembers", "OfMixture", "of_ensemble"},
}


def test_modules_that_are_said_to_be_public_exist():
    listed = re.findall(r"^    (\w+) {2,}\S", uncertainty.__doc__.split("modules below")[1], re.M)
    assert {"metrics", "posthoc", "conformal", "ood", "layers"} <= set(listed)
    for name in listed:
        module = importlib.import_module(f"uncertainty.{name}")
        public = [n for n in vars(module) if n[0] != "_"]
        assert public or pkgutil.iter_modules(module.__path__), name


@pytest.mark.parametrize(
    "name", ["own", "distributions", "in_memory", "conformal", "ood", "posthoc"]
)
def test_doctests(name):
    module = importlib.import_module(f"uncertainty.{name}")
    failed, count = doctest.testmod(module)
    assert count >= 2 and not failed


@pytest.mark.parametrize("file", TUTORIALS, ids=lambda file: file.stem)
def test_tutorials_import_what_is_public(file):
    texts = [file.read_text(encoding="utf-8")]
    for node in ast.walk(ast.parse(texts[0])):  # files that a tutorial writes
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and "import" in node.value
        ):
            texts.append(node.value)
    for text in texts:
        try:
            tree = ast.parse(text)
        except SyntaxError:
            continue
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            assert not {n.split(".")[0] for n in names} & {"uncertainty", "experiments", "configs"}
            if not isinstance(node, ast.ImportFrom):
                continue
            if node.module.split(".")[0] in ("uncertainty", "experiments", "configs"):
                public = PUBLIC.get(node.module, set())
                for alias in node.names:
                    is_public = alias.name in public or (
                        node.module in MODULES and alias.name[0] != "_"
                    )
                    assert is_public, f"{file.name} imports {alias.name} of {node.module}"


@pytest.mark.slow
@pytest.mark.parametrize("file", TUTORIALS, ids=lambda file: file.stem)
def test_tutorials_run(file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XLA_FLAGS")  # the programs that it starts have the devices of a laptop
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT)])
    try:
        runpy.run_path(str(file), run_name="__main__")
    finally:
        sys.modules.pop("mine", None)  # a package that a tutorial writes
    printed = capsys.readouterr().out
    accuracies = [float(text) for text in re.findall(r"accuracy (0\.\d+)", printed)]
    shown = {
        "your_own_model": ("SWAG", "BatchEnsemble"),
        "from_a_config": ("heteroscedastic.Heteroscedastic", "Accuracy"),
        "parts_of_your_own": ("Worst class accuracy", "mine:Cosine", "scale: float = 10.0"),
        "predictions_of_any_model": ("Ensemble + temperature", "eight_nine AUROC", "95 %"),
    }
    assert all(text in printed for text in shown[file.stem]), printed
    if file.stem == "your_own_model":
        assert len(accuracies) == 5 and min(accuracies) > 0.85, printed
