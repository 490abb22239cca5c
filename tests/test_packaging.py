"""What is installed: one package in a wheel, the folders of the checkout in an editable install."""

import ast
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

from experiments import cli

PROGRAMS = ("experiments", "configs", "studies", "tools")
ROOT = pathlib.Path(__file__).parent.parent
BUILD = "import sys; from setuptools import build_meta as b; getattr(b, sys.argv[1])(sys.argv[2])"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of what is packaged, so that building leaves nothing here."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("uncertainty", "results", *PROGRAMS):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def built(checkout, kind, out):
    """The folder that the wheel of a kind is unpacked to."""
    command = [sys.executable, "-c", BUILD, kind, str(out)]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(out / "site")
    return out / "site"


def sources(folder):
    """Python file -> text, below a folder."""
    return {p.relative_to(folder): p.read_text(encoding="utf-8") for p in folder.rglob("*.py")}


@pytest.fixture(scope="module")
def site(checkout, tmp_path_factory):
    """What pip puts into an environment."""
    return built(checkout, "build_wheel", tmp_path_factory.mktemp("wheel"))


@pytest.mark.slow
def test_a_wheel_has_one_package(site):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    info = f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    assert sorted(p.name for p in site.iterdir()) == sorted(["uncertainty", info])
    packaged = sources(site / "uncertainty")
    programs = {file: packaged.pop(file) for file in list(packaged) if file.parts[0] in PROGRAMS}
    assert packaged == sources(ROOT / "uncertainty")  # the library as it is
    theirs = {
        pathlib.Path(name) / file: text
        for name in PROGRAMS
        for file, text in sources(ROOT / name).items()
    }
    assert programs.keys() == theirs.keys()
    for file, text in programs.items():
        back = re.sub(rf"\buncertainty\.(?=({'|'.join(PROGRAMS)})\b)", "", text)
        assert back == re.sub(rf"\buncertainty\.(?=({'|'.join(PROGRAMS)})\b)", "", theirs[file])
        for node in ast.walk(ast.parse(text)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {*PROGRAMS}, file
        assert "-m experiments" not in text and '"-m", "experiments' not in text, file
    assert (site / "uncertainty" / "py.typed").is_file()
    assert "Apache License" in (site / info / "licenses" / "LICENSE").read_text()
    tables = {p.relative_to(ROOT) for p in (ROOT / "results").rglob("runs.jsonl")}
    packaged = {p.relative_to(site / "uncertainty") for p in site.rglob("runs.jsonl")}
    assert packaged == tables and len(tables) > 10
    scripts = (site / info / "entry_points.txt").read_text().split()
    assert scripts == ["[console_scripts]", "uncertainty", "=", "uncertainty.experiments.cli:main"]


OWN_CONFIG = """
from experiments.experiment.base import base


def get_config():
    config = base()
    config.data.train = dict(name="own:data")
    config.head = dict(name="own:Head", outputs=3)
    config.backbone = dict(name="mlp.MLP", widths=(4,))
    config.steps, config.batch_size, config.mesh = 1, 4, dict(data=1)
    config.evaluators = dict(test=dict(name="classification", data=dict(split="train")))
    return config
"""
OWN_PARTS = """
import numpy as np
from uncertainty.heads.dense import Dense as Head


def data():
    return {"train": dict(x=np.eye(6, dtype=np.float32), y=np.arange(6) % 3)}
"""


@pytest.mark.slow
def test_the_programs_of_a_wheel_run_from_an_empty_folder(site, tmp_path):
    """Without this checkout: `-S` leaves out what an environment finds by itself."""
    paths = [str(site), *(p for p in sys.path if p.endswith("site-packages"))]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(paths))
    (tmp_path / "mine.py").write_text(OWN_CONFIG)
    (tmp_path / "own.py").write_text(OWN_PARTS)

    def run(*words):
        script = "import sys; from uncertainty.experiments.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-S", "-P", "-c", script, *map(str, words)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert "Accuracy" in run("train", "--config", "mine.py", "--workdir", "b")
    assert {"checkpoints", "data.json"} <= {p.name for p in (tmp_path / "b").iterdir()}
    output = run("reproduce", "digits", "--no-report")
    assert "10 read from results/digits/runs.jsonl, 0 run, 0 failed" in output
    assert str(ROOT) not in output and "python -m experiments" not in output
    # From Python, and with no name but its own.
    code = (
        "import sys, numpy as np\n"
        "from uncertainty.experiments import load_run\n"
        "print(load_run('b').predict(np.eye(6, dtype=np.float32)).probs.shape)\n"
        "print([n for n in ('experiments', 'configs', 'tools', 'studies') if n in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-P", "-c", code],
        cwd=tmp_path,
        env=dict(environment, PYTHONPATH=os.pathsep.join([*paths, str(tmp_path)])),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-2:] == ["(6, 3)", "[]"], done.stdout + done.stderr


@pytest.mark.slow
def test_an_editable_install_finds_the_programs_from_any_directory(checkout, tmp_path):
    site = built(checkout, "build_editable", tmp_path)
    code = (
        "import site, sys, importlib.util as u, runpy\n"
        f"sys.path.insert(0, {str(site)!r})\n"
        f"site.addsitedir({str(site)!r})\n"
        "names = 'uncertainty experiments configs studies tools configs.tables.uci'.split()\n"
        "print([u.find_spec(name).origin for name in names])\n"
        "sys.argv = ['train', '--help']\n"
        "runpy.run_module('experiments.train', run_name='__main__')\n"
    )
    # Without the site of an environment that has this project installed already.
    paths = [p for p in sys.path if p.endswith("site-packages")]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(paths))
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    origins = done.stdout.splitlines()[0]
    assert origins.count(str(checkout)) == 6, done.stdout + done.stderr
    assert "--config" in done.stdout + done.stderr, done.stderr


def test_the_command_knows_the_programs(monkeypatch, capsys):
    assert {"train", "evaluate", "reproduce", "report"} <= cli.programs().keys()
    assert not {"cli", "runs", "__init__"} & cli.programs().keys()
    for words, code, text in (
        (["tarin"], 2, "no program 'tarin'; did you mean train"),
        (["--help"], 0, "Reproduces a table"),
        ([], 2, "usage"),
    ):
        monkeypatch.setattr(sys, "argv", ["uncertainty", *words])
        with pytest.raises(SystemExit) as error:
            cli.main()
        captured = capsys.readouterr()
        assert error.value.code == code and text in captured.out + captured.err
