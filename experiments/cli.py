"""All programs as one command, from any folder.

    uncertainty train --config configs/digits/mlp.py:size=5 --workdir runs/five
    uncertainty describe heads

`uncertainty PROGRAM` is `python -m experiments.program` for each program here. Files of configs
that are not in the current folder are those of the project.
"""

import ast
import difflib
import os
import pathlib
import runpy
import sys

from experiments.runtime import project

HERE = pathlib.Path(__file__).parent


def programs() -> dict[str, str]:
    """Program -> the first sentence about it, of the files here that can be run."""
    found = {}
    for file in sorted(HERE.glob("*.py")):
        text = file.read_text(encoding="utf-8")
        if 'if __name__ == "__main__":' in text and file.name != pathlib.Path(__file__).name:
            about = ast.get_docstring(ast.parse(text)) or ""
            found[file.stem] = " ".join(about.partition("\n\n")[0].split())
    return found


def main() -> None:
    names, given = programs(), sys.argv[1:2]
    if not given or given[0] in ("-h", "--help", "help"):
        width = max(map(len, names))
        print("usage: uncertainty PROGRAM ...\n")
        print("\n".join(f"  {name:{width}}  {about}" for name, about in names.items()))
        sys.exit(0 if given else 2)
    program = given[0]
    if program not in names:
        near = difflib.get_close_matches(program, names, n=2)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        print(f"error: no program {program!r}; {hint}({', '.join(names)})", file=sys.stderr)
        sys.exit(2)
    sys.path.append(os.getcwd())  # for parts of a package of your own, as with `python -m`
    project.alias()
    module = f"{__package__}.{program}"
    sys.argv = [f"{sys.argv[0]} {program}", *sys.argv[2:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
