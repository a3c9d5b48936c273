"""What is built is what is installed: the wheel and the sdist, and a command that works with the core's dependencies alone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from headstart.version import __version__

ROOT = Path(__file__).parent.parent
TRAIN = ["train", "--data", "glyphs", "--iterations", "2", "--tasks", "4", "--filters", "4", "--lr", "0.4", "--start", "shared"]
TRAIN += ["--validation-episodes", "4", "--test-episodes", "10", "--out", "run"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel that was made of it."""
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    copy, out = tmp_path_factory.mktemp("copy") / "headstart", tmp_path_factory.mktemp("dist")
    shutil.copytree(
        ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__", "runs", "build", "dist", "docs", "shared", "node_modules")
    )
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def wheel_in(folder: Path) -> Path:
    (found,) = folder.glob("*.whl")
    return found


def required(wheel: Path) -> list[Requirement]:
    with zipfile.ZipFile(wheel) as file:
        about = Parser().parsestr(file.read(f"headstart-{__version__}.dist-info/METADATA").decode())
    assert about["Version"] == __version__
    assert about["Requires-Python"] == ">=3.11"
    return [r for r in map(Requirement, about.get_all("Requires-Dist", [])) if r.marker is None or r.marker.evaluate({"extra": ""})]


def test_the_files_that_are_built(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    assert sdist.name == f"headstart-{__version__}.tar.gz"
    own = {
        str(p.relative_to(ROOT / "src")) for p in (ROOT / "src" / "headstart").rglob("*") if p.is_file() and "__pycache__" not in p.parts
    }
    with zipfile.ZipFile(wheel_in(built)) as file:
        names = set(file.namelist())
    about = {name for name in names if name.startswith(f"headstart-{__version__}.dist-info/")}
    assert names - about == own, "all of the package, and nothing else"
    assert {"headstart/py.typed", "headstart/starts/characters.safetensors", "headstart/playing/page.html"} <= names
    assert f"headstart-{__version__}.dist-info/licenses/LICENSE" in about
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"src/headstart/version.py", "tests/test_packaging.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"} <= inside


def linked(requirements: list[Requirement], folder: Path) -> set[str]:
    """A folder of links to the distributions that requirements need, and those to theirs, and nothing else that is installed here."""
    waiting, seen = list(requirements), set()
    while waiting:
        one = waiting.pop()
        name = re.sub(r"[-_.]+", "-", one.name).lower()
        if name in seen:
            continue
        seen.add(name)
        found = metadata.distribution(name)
        assert one.specifier.contains(found.version, prereleases=True), f"{one}: {found.version} is installed"
        for file in found.files or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (folder / top).exists():
                (folder / top).symlink_to(Path(str(found.locate_file(top))))
        further = map(Requirement, found.requires or [])
        waiting += [r for r in further if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in {"", *one.extras})]
    return seen


def test_the_core_alone_trains_on_glyphs_and_names_the_extra_that_is_missing(built: Path, tmp_path: Path) -> None:
    """As after ``pip install headstart``: the wheel's own files, and of what is installed here only what its metadata asks for."""
    site, work = tmp_path / "site", tmp_path / "work"
    site.mkdir()
    work.mkdir()
    seen = linked(required(wheel_in(built)), site)
    assert not seen & {"scipy", "pyarrow", "scikit-learn", "transformers", "fastapi", "onnx", "pytest"}
    with zipfile.ZipFile(wheel_in(built)) as file:
        file.extractall(site)
        entry = file.read(f"headstart-{__version__}.dist-info/entry_points.txt").decode()
    assert "headstart = headstart.cli:main" in entry
    own = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}

    def run(code: str, *args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-S", "-c", f"import sys; from headstart.cli import main; {code}", *args]
        # -S: without the packages that are installed here
        return subprocess.run(command, env={**own, "PYTHONPATH": str(site)}, cwd=work, capture_output=True, text=True, check=False)

    done = run("sys.exit(main(sys.argv[1:]))", *TRAIN)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d+\.\d\d ± \d+\.\d\d % accuracy", done.stdout)
    assert (work / "run" / "report.html").exists()
    (work / "some.csv").write_text("task,x,y\na,1,2\n")
    table = ["train", "--data", "table:some.csv", "--data-options", "task=task,target=y"]
    done = run(f"print(*[main(args) for args in ({table}, ['train', '--log', 'tensorboard'], ['reproduce', 'F1'])])")
    assert done.stdout == "2 2 2\n"
    assert re.findall(r"pip install 'headstart\[(.*)\]'", done.stderr) == ["tables", "tensorboard", "theory"]


@pytest.mark.slow
def test_pip_installs_the_wheel_into_a_clean_environment(built: Path, tmp_path: Path) -> None:
    """From a registry, with the pinned versions: minutes, and hundreds of megabytes."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    folder = tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
    install = [folder / "python", "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel_in(built)]
    subprocess.run(list(map(str, install)), check=True)
    own = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    for args, said in ((["--version"], f"headstart {__version__}"), (TRAIN, "% accuracy"), (["doctor"], "allocator")):
        done = subprocess.run([str(folder / "headstart"), *args], env=own, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert said in done.stdout


def test_every_install_line_of_the_documents_names_extras_that_exist() -> None:
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    texts = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("src/**/*.py"), *ROOT.glob("examples/*.py"), ROOT / "Makefile"]
    named = {
        e.strip() for f in texts for found in re.findall(r"(?:headstart|-e '?\.)\[([a-z,]+)\]", f.read_text()) for e in found.split(",")
    }
    assert len(named) > 8
    assert named <= extras


def test_the_pins_are_within_the_ranges() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    ranges = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    for one in map(Requirement, ranges):
        if one.name in pins:
            assert one.specifier.contains(pins[one.name]), f"{one}: {pins[one.name]} is pinned"
    missing = {Requirement(r).name for r in project["dependencies"]} - set(pins)
    assert not missing, f"without a pin: {missing}"
