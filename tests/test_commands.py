"""The commands that the docs show: programs, flags, configs, fields and tables exist."""

import ast
import functools
import importlib.util
import itertools
import pathlib
import re
import shlex

import pytest

from experiments.experiment import config as config_lib

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "ARCHITECTURE")),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "benchmarks/README.md",
]
END = {"&&", ";", "|", "||", "do", "done", "then", "#", ">"}


def code(text: str) -> list[str]:
    """Code of a page: fenced, indented, and inline, which may go over a line's end."""
    fences = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)
    found = fences.findall(text)
    rest = fences.sub("", text)
    inline = [" ".join(item.split()) for item in re.findall(r"`([^`]+)`", rest)]
    return [*found, *inline, *re.findall(r"^    (\S.*)$", rest, re.MULTILINE)]


def commands(text: str) -> list[list[str]]:
    """The words of each `python -m MODULE ...`, from the module on."""
    found = []
    for block in code(text):
        lines = re.sub(r"\\\n\s*", " ", block).splitlines()
        for line in lines:
            for match in re.finditer(r"python -m (\S.*)", line.split(" && python")[0]):
                words = shlex.split(match[1].rstrip('";').replace("; do", " ; do"), comments=True)
                end = next((i for i, word in enumerate(words) if word in END), len(words))
                found.append([word.rstrip(";") for word in words[:end]])
    return found


EVERY = [
    pytest.param(words, id=f"{page.relative_to(ROOT)}: {' '.join(words)[:80]}")
    for page in PAGES
    for words in commands(page.read_text(encoding="utf-8"))
]


@functools.cache
def flags_of(module: str, depth: int = 2) -> frozenset[str]:
    """The flags that a program defines, or a module that it imports, by its source."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.origin or not pathlib.Path(spec.origin).is_relative_to(ROOT):
        return frozenset()
    found, imported = {"help"}, set()
    for node in ast.walk(ast.parse(pathlib.Path(spec.origin).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name, function = node.args[0].value, ast.unparse(node.func)
            if "DEFINE_" in function:
                found.add(name)
            elif isinstance(name, str) and name.startswith("--"):
                found.add(name[2:])
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
    if depth:
        for name in imported:
            if name.split(".")[0] in ("experiments", "studies", "benchmarks", "tools"):
                try:
                    found |= flags_of(name, depth - 1)
                except ModuleNotFoundError:  # a name of a module, not a module
                    continue
    return frozenset(found)


def is_placeholder(word: str) -> bool:
    return bool(re.search(r"\$|^[A-Z_]{2,}|NAME|FILE|\.\.\.|\[", word))


def test_the_docs_have_commands():
    assert len(EVERY) > 30


@pytest.mark.parametrize("words", EVERY)
def test_a_command_of_the_docs_exists(words):
    module, *rest = words
    module = module.removeprefix("uncertainty.")  # of an installed copy
    if module in ("pip", "http.server", "venv") or is_placeholder(module):
        return
    assert importlib.util.find_spec(module), f"no module {module}"
    known = {flag.replace("-", "_") for flag in flags_of(module)}
    for word in rest:
        if word.startswith("--") and not word.startswith("--config."):
            name = word[2:].partition("=")[0].replace("-", "_")
            assert name in known, f"{module} has no flag {word}"
    for place in (word for word in rest if word.startswith("configs/")):
        assert (ROOT / place.partition(":")[0]).is_file(), f"no file {place}"
    tables = rest[:1] if module == "experiments.reproduce" else []
    for name in tables:
        if not (name.startswith("-") or is_placeholder(name)):
            assert (ROOT / "configs" / "tables" / f"{name}.py").is_file(), f"no table {name}"


@pytest.mark.parametrize(
    "words", [p for p in EVERY if any(w.startswith("--config.") for w in p.values[0])]
)
def test_fields_of_a_command_are_those_of_its_config(words):
    """They are read and checked as the programs do before they train."""
    changes = [word for word in words if word.startswith("--config.")]
    file = next((w for before, w in itertools.pairwise(words) if before == "--config"), "")
    if any(is_placeholder(change.partition("=")[0]) for change in changes):
        return
    loaded = config_lib.load(
        file or "configs/digits/mlp.py:size=5", config_lib.assignments(changes, "--config.")
    )
    config_lib.check(config_lib.plain(loaded))


def test_targets_of_make_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for block in code(page.read_text(encoding="utf-8")):
            for target in re.findall(r"^make ([a-z-]+)", block, re.MULTILINE):
                assert target in targets, f"{page.name}: make {target}"
