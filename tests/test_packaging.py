"""What is installed: the library alone in a wheel, the programs too in an editable install."""

import os
import pathlib
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parent.parent
BUILD = "import sys; from setuptools import build_meta as b; getattr(b, sys.argv[1])(sys.argv[2])"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of what is packaged, so that building leaves nothing here."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("uncertainty", "experiments", "configs", "studies", "tools"):
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


@pytest.mark.slow
def test_a_wheel_has_the_library_alone(checkout, tmp_path):
    site = built(checkout, "build_wheel", tmp_path)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    info = f"uncertainty-{version}.dist-info"
    assert sorted(p.name for p in site.iterdir()) == ["uncertainty", info]
    packaged = {p.relative_to(site) for p in (site / "uncertainty").rglob("*.py")}
    assert packaged == {p.relative_to(ROOT) for p in (ROOT / "uncertainty").rglob("*.py")}
    assert (site / "uncertainty" / "py.typed").is_file()
    assert "Apache License" in (site / info / "licenses" / "LICENSE").read_text()


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
