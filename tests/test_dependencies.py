"""Dependencies point one way, the library touches nothing outside, and imports stay light."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGES = ("uncertainty", "experiments", "configs", "studies", "tools")

# What each part of the library may import of the others.
MAY_IMPORT = {
    "types": set(),
    "rules": set(),
    "restore": {"restore"},
    "optimisers": {"types", "rules", "optimisers"},
    "predictive": {"types"},
    "likelihoods": {"types", "predictive"},
    "metrics": {"metrics"},
    "layers": {"types", "layers"},
    "backbones": {"types", "layers", "backbones"},
    "heads": {"types", "layers", "heads"},
    "ensembles": {"types", "rules", "layers", "backbones", "ensembles"},
    "model": {"types", "layers", "predictive", "likelihoods"},
    "priors": {"types", "rules"},
    "inference": {"types", "likelihoods", "optimisers", "inference"},
    "stages": {"types", "optimisers", "inference", "stages"},
    "specs": set(),  # finds all else by name
    "build": {"types", "model", "optimisers", "specs"},
}
OUTSIDE = {"jax", "flax", "optax", "numpy", "scipy"}  # libraries without input or output
STANDARD = {"collections", "concurrent", "contextlib", "contextvars", "dataclasses", "difflib",
            "fractions", "functools", "importlib", "inspect", "itertools", "math", "operator", "os",
            "pkgutil", "re", "types", "typing"}  # fmt: skip
HEAVY = ("tensorflow", "tensorflow_datasets", "tensorboard", "torch", "keras", "sklearn", "pandas",
         "matplotlib", "clu.metric_writers")  # fmt: skip
PROGRAMS = [
    f"experiments.{p}" for p in ("train", "evaluate", "stage", "reproduce", "quickstart", "report")
]


def modules():
    """name -> parsed source of every module of the project."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


MODULES = modules()
LIBRARY = {name: tree for name, tree in MODULES.items() if name.startswith("uncertainty")}


def imports(name, tree, late=True):
    """The modules that a module imports; without `late`, only while it is being imported."""
    nodes = list(ast.walk(tree)) if late else list(at_import(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module


def at_import(node):
    """The nodes that run when a module is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from at_import(child)


def part(module):
    """`backbones` of `uncertainty.backbones.mlp`."""
    return (module.split(".") + [""])[1]


@pytest.mark.parametrize("name", LIBRARY)
def test_the_library_imports_what_lies_below(name):
    if name == "uncertainty":
        return
    assert part(name) in MAY_IMPORT, f"{name}: say in MAY_IMPORT where it stands"
    for imported in imports(name, LIBRARY[name]):
        top = imported.split(".")[0]
        if top == "uncertainty":
            assert part(imported) in MAY_IMPORT[part(name)], f"{name} imports {imported}"
        else:
            assert top in OUTSIDE | STANDARD, f"{name} imports {imported}"


@pytest.mark.parametrize("name", LIBRARY)
def test_the_library_neither_reads_nor_writes_nor_prints(name):
    forbidden = {"open", "print", "input", "exec", "eval", "breakpoint"}
    methods = {"save", "savez", "savetxt", "loadtxt", "fromfile", "tofile", "write_text",
               "read_text", "write_bytes", "read_bytes", "mkdir", "unlink"}  # fmt: skip
    for node in ast.walk(LIBRARY[name]):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "os":
            assert node.attr == "cpu_count", f"{name}:{node.lineno} uses os.{node.attr}"
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name):
                assert called.id not in forbidden, f"{name}:{node.lineno} calls {called.id}"
            if isinstance(called, ast.Attribute):
                assert called.attr not in methods, f"{name}:{node.lineno} calls {called.attr}"


def test_configs_and_experiments_import_one_way():
    for name, tree in MODULES.items():
        for imported in imports(name, tree):
            if name.startswith("configs") and imported.startswith("experiments"):
                assert imported == "experiments.experiment.base", f"{name} imports {imported}"
            if name.startswith("uncertainty"):
                assert not imported.startswith("experiments")


def test_no_module_is_imported_while_it_imports():
    """The graph of imports has no cycle: modules sort topologically."""
    below = {
        name: {i for i in imports(name, tree, late=False) if i in MODULES and i != name}
        for name, tree in MODULES.items()
    }
    while below:
        ready = {name for name, needed in below.items() if not needed & below.keys()}
        assert ready, f"a cycle among {sorted(below)}"
        below = {name: needed for name, needed in below.items() if name not in ready}


def test_everything_that_is_imported_is_declared():
    declared = (ROOT / "setup.py").read_text(encoding="utf-8").lower().replace("-", "_")
    named = {"absl": "absl_py", "sklearn": "scikit_learn", "PIL": "pillow", "png": "pypng",
             "tensorflow_datasets": "tensorflow_datasets", "orbax": "orbax_checkpoint"}  # fmt: skip
    for name, tree in MODULES.items():
        for imported in imports(name, tree):
            top = imported.split(".")[0]
            if top not in PACKAGES and top not in sys.stdlib_module_names:
                assert f'"{named.get(top, top).lower()}' in declared, f"{name} imports {top}"


@pytest.mark.slow
def test_programs_start_without_heavy_libraries_and_claim_no_device():
    code = (
        f"import sys, {', '.join(PROGRAMS)}, jax\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])\n"
        "print(jax._src.xla_bridge.backends_are_initialized())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["[]", "False"]
