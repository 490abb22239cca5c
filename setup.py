"""Which packages are installed; all else is in pyproject.toml.

A wheel has the library, `uncertainty`, alone. An editable install also finds the programs, their
configs and the tools of this checkout, from any directory.
"""

import sys

from setuptools import find_packages, setup

PROGRAMS = ["experiments", "configs", "studies", "tools"]
editable = any(command in sys.argv for command in ("editable_wheel", "develop"))
names = ["uncertainty", *(PROGRAMS if editable else [])]
setup(packages=find_packages(include=[*names, *(f"{name}.*" for name in names)]))
