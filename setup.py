"""Which packages are installed; all else is in pyproject.toml.

A wheel has one package, `uncertainty`: the library, and in it the programs, their configs and the
results that they read, as `uncertainty.experiments`, `uncertainty.configs`, ... The programs import
one another as `experiments`, `configs`, ...; a wheel has these names with their new parent, and a
test runs it. An editable install finds the folders of this checkout from any directory, unchanged.
"""

import pathlib
import re
import sys

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

LIBRARY, PROGRAMS = "uncertainty", ["experiments", "configs", "studies", "tools"]
RESULTS = "results"
editable = any(command in sys.argv for command in ("editable_wheel", "develop"))

_ANY = "|".join(PROGRAMS)
# `from experiments import x`; and `experiments.x` in code and in commands, but not in file names.
_NAMES = re.compile(
    rf"(?<=^from )({_ANY})(?= import)|(?<![\w./])({_ANY})(?=\.[a-z_])(?!\.py\b)", re.MULTILINE
)
_INDENTED = re.compile(rf"^(\s+from )({_ANY})(?= import)", re.MULTILINE)


def installed(text: str) -> str:
    """The source of a program with the names of the installed packages."""
    text = _INDENTED.sub(rf"\g<1>{LIBRARY}.\g<2>", text)
    return _NAMES.sub(lambda match: f"{LIBRARY}.{match[0]}", text)


class Build(build_py):
    """Copies the library as it is, and programs with the names that they have in a wheel."""

    def build_module(self, module, module_file, package):
        outfile, copied = super().build_module(module, module_file, package)
        if not editable and ".".join(package.split(".")[1:2]) in PROGRAMS:
            file = pathlib.Path(outfile)
            file.write_text(installed(file.read_text(encoding="utf-8")), encoding="utf-8")
        return outfile, copied


def packages(names):
    return find_packages(include=[*names, *(f"{name}.*" for name in names)])


if editable:
    layout = dict(packages=packages([LIBRARY, *PROGRAMS]))
else:
    moved = {name: f"{LIBRARY}.{name}" for name in packages(PROGRAMS)}
    folders = {new: name.replace(".", "/") for name, new in moved.items()}
    layout = dict(
        packages=[*packages([LIBRARY]), *moved.values(), f"{LIBRARY}.{RESULTS}"],
        package_dir={**folders, f"{LIBRARY}.{RESULTS}": RESULTS},
    )
prefix = "" if editable else f"{LIBRARY}."
setup(
    **layout,
    cmdclass=dict(build_py=Build),
    entry_points=dict(console_scripts=[f"uncertainty = {prefix}experiments.cli:main"]),
)
