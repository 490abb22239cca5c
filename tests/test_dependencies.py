"""Dependencies point one way, the library touches nothing outside, and imports stay light."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGES = ("uncertainty", "experiments", "configs", "studies", "tools")

# What each part of the library may import of the others.
MAY_IMPORT = {
    "types": {"rules"},
    "rules": set(),
    "cpu": {"cpu"},
    "keys": set(),
    "restore": {"specs", "restore"},
    "optimisers": {"types", "rules", "cpu", "optimisers"},
    "predictive": {"types"},
    "likelihoods": {"types", "predictive"},
    "metrics": {"metrics"},
    "ood": {"ood"},
    "posthoc": {"posthoc"},
    "conformal": {"conformal"},
    "combining": {"combining"},
    "layers": {"types", "rules", "cpu", "layers"},
    "backbones": {"types", "rules", "layers", "backbones"},
    "heads": {"types", "layers", "heads"},
    "ensembles": {"types", "rules", "layers", "backbones", "ensembles"},
    "model": {"types", "layers", "predictive", "likelihoods"},
    "functions": {"types", "keys", "layers", "predictive"},
    "priors": {"types", "rules"},
    "contrast": set(),
    "views": set(),
    "symmetries": {"views", "specs"},
    "objectives": {"types", "keys", "layers", "contrast", "views", "symmetries", "objectives"},
    "inference": {"types", "keys", "likelihoods", "optimisers", "cpu", "inference"},
    "stages": {"types", "keys", "layers", "optimisers", "inference", "stages"},
    "specs": set(),  # finds all else by name
    "own": {"types", "model", "ensembles"},
    "distributions": {"metrics"},
    "in_memory": {"types", "rules", "distributions"},
    "build": {"types", "model", "optimisers", "specs"},
}
OUTSIDE = {"jax", "flax", "optax", "numpy", "scipy"}  # libraries without input or output
STANDARD = {
    "collections",
    "concurrent",
    "contextlib",
    "contextvars",
    "dataclasses",
    "difflib",
    "enum",
    "fractions",
    "functools",
    "importlib",
    "inspect",
    "itertools",
    "math",
    "operator",
    "os",
    "pkgutil",
    "re",
    "types",
    "typing",
}
HEAVY = (
    "tensorflow",
    "tensorflow_datasets",
    "tensorboard",
    "torch",
    "keras",
    "sklearn",
    "pandas",
    "matplotlib",
    "clu.metric_writers",
)
PROGRAMS = [
    f"experiments.{p}"
    for p in (
        "train",
        "evaluate",
        "stage",
        "reproduce",
        "sweep",
        "quickstart",
        "report",
        "score",
        "combine",
        "compile",
        "describe",
    )
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
        if isinstance(child, ast.If):
            condition = ast.unparse(child.test)
            if "TYPE_CHECKING" in condition or "__main__" in condition:
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
    methods = {
        "save",
        "savez",
        "savetxt",
        "loadtxt",
        "fromfile",
        "tofile",
        "write_text",
        "read_text",
        "write_bytes",
        "read_bytes",
        "mkdir",
        "unlink",
    }
    for node in ast.walk(LIBRARY[name]):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "os":
            assert node.attr == "cpu_count", f"{name}:{node.lineno} uses os.{node.attr}"
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name):
                assert called.id not in forbidden, f"{name}:{node.lineno} calls {called.id}"
            if isinstance(called, ast.Attribute):
                assert called.attr not in methods, f"{name}:{node.lineno} calls {called.attr}"


def test_configs_import_few_and_are_found_by_name():
    for name, tree in MODULES.items():
        for imported in imports(name, tree):
            package, other = name.split(".")[0], imported.split(".")[0]
            if package == "configs" and other == "experiments":
                assert imported == "experiments.experiment.base", f"{name} imports {imported}"
            assert other != "configs" or package == "configs", f"{name} imports {imported}"


# Rooms of `experiments` from below; each imports those before it, and the library.
ROOMS = (
    "runtime",
    "data",
    "prediction",
    "evaluators",
    "experiment",
    "reports",
    "scoring",
    "score",
    "evaluate",
    "runs",
    "combining",
    "combine",
    "stage",
    "planning",
    "train",
    "tables",
    "sweeps",
    "sweep",
    "reproduce",
    "quickstart",
    "report",
    "compile",
    "export",
    "describe",
    "cli",
)


def room(module):
    """`experiments.data` of `experiments.data.source`; a program is a room of its own."""
    return ".".join(module.split(".")[:2])


def below(of, ignored=()):
    """of(module) -> what its modules import of the others, late and for types too."""
    graph = {of(name): set() for name in MODULES}
    for name, tree in MODULES.items():
        if name not in ignored:
            graph[of(name)] |= {of(i) for i in imports(name, tree) if i in MODULES} - {of(name)}
    return graph


def test_rooms_import_one_way():
    graph = below(room)
    known = {f"experiments.{name}" for name in ROOMS}
    for i, name in enumerate(ROOMS):
        allowed = {f"experiments.{lower}" for lower in ROOMS[:i]}
        above = graph[f"experiments.{name}"] & known - allowed
        assert not above, f"experiments.{name} imports {sorted(above)}"
    assert {r for r in graph if r.startswith("experiments.")} == known


# These name the type of what they get, in annotations alone.
TYPES_ALONE = ("experiments.data.images", "experiments.data.labels")


@pytest.mark.parametrize(
    ("of", "ignored"), [(room, ()), (str, TYPES_ALONE)], ids=["rooms", "files"]
)
def test_there_is_no_circle(of, ignored):
    """They sort topologically, whenever it is that they import."""
    graph = below(of, ignored)
    while graph:
        ready = {name for name, needed in graph.items() if not needed & graph.keys()}
        assert ready, f"a circle among {sorted(graph)}"
        graph = {name: needed for name, needed in graph.items() if name not in ready}


METHODS = {
    path.stem
    for folder in ("heads", "ensembles", "layers", "stages", "inference/directions", "objectives")
    for path in (ROOT / "uncertainty" / folder).rglob("*.py")
    if path.stem != "__init__"
}
# Words that say something else in the runtime: a gradient's norm, bytes that are packed, ...
ENGLISH = {
    "choice",
    "conv",
    "dense",
    "independent",
    "likelihood",
    "mask",
    "monitor",
    "norm",
    "packed",
    "pool",
    "posterior",
    "replace",
    "select",
    "single",
    "together",
    "training",
}
RUNTIME = [
    name
    for name in MODULES
    if name in ("experiments.train", "experiments.evaluate", "experiments.stage")
    or room(name) in ("experiments.runtime", "experiments.prediction", "experiments.experiment")
]


def words(tree):
    """(line, word) of all identifiers and texts of a module but for its docstrings."""
    nodes = list(ast.walk(tree))
    documented = ast.Module | ast.ClassDef | ast.FunctionDef
    docstrings = {
        id(node.body[0].value)
        for node in nodes
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in nodes:
        texts = [value for _, value in ast.iter_fields(node) if isinstance(value, str)]
        if id(node) not in docstrings:
            for word in re.findall(r"[a-z][a-z0-9_]*", " ".join(texts).lower()):
                yield getattr(node, "lineno", "import"), word


@pytest.mark.parametrize("name", RUNTIME)
def test_the_runtime_names_no_method(name):
    methods = METHODS - ENGLISH
    assert {"laplace", "routing", "swag", "svgd", "sngp", "batch_ensemble", "experts"} <= METHODS
    for line, word in words(MODULES[name]):
        found = methods & {word, *word.split("_")}
        assert not found, f"{name}:{line} names {found}"


def test_the_quickstart_imports_few_files():
    """With those that run when a module is imported; what is found by name comes on top."""
    seen, todo = set(), ["experiments.quickstart"]
    while todo:
        name = todo.pop()
        if name in MODULES and name not in seen:
            seen.add(name)
            todo += [name.rpartition(".")[0], *imports(name, MODULES[name], late=False)]
    files = {name for name in seen if len(MODULES[name].body) > 1}  # not a docstring alone
    files -= {"uncertainty", "experiments"}  # whose exports are imported where they are asked for
    assert len(files) <= 66, sorted(files)


def test_everything_that_is_imported_is_declared():
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8").lower().replace("-", "_")
    named = {
        "absl": "absl_py",
        "sklearn": "scikit_learn",
        "PIL": "pillow",
        "png": "pypng",
        "tensorflow_datasets": "tensorflow_datasets",
        "orbax": "orbax_checkpoint",
    }
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
