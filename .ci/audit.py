"""Looks over what headstart depends on: pins, licences and installs always; known vulnerabilities where their service can be reached.

python .ci/audit.py      (make lint runs it)
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
ALONE = "headstart"
FREE = re.compile(
    r"\b(0?BSD|MIT|Apache|ISC|PSF|Python Software Foundation|CNRI-Python|MPL|Mozilla|Zlib|BSL|CC0|LLVM-exception)\b|0BSD|MIT-CMU"
)
"""Licences under which what headstart uses may be used together with it."""
KNOWN = {
    "atheris": "Apache-2.0: its repository says so, its wheel does not; used for fuzzing alone",
    "docutils": "public domain and BSD, but for an editor's mode under the GPL, which nothing here uses; makes the site alone",
}
"""Licences that a package does not say itself."""
APART = {"wandb", "mlflow", "trackio", "lightning"}
"""Extras that CI does not install, each of one library with pins of its own (mlflow and trackio do not take those here)."""
ACCEPTED: dict[str, str] = {}
"""Vulnerabilities by their name that do not matter here, with the reason."""
KNOWN_BAD = {"jinja2": "2.10"}
"""Not used here: a version with a vulnerability of 2019, by which it is seen that vulnerabilities are found at all."""
QUICK, LONG = 20, 240  # seconds: to find out whether the service is there, and for all packages


def declared(root: Path = ROOT) -> list[Requirement]:
    """What pyproject.toml asks for, in all extras."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    return [r for r in map(Requirement, texts) if r.name != ALONE]


def pins(root: Path = ROOT) -> dict[str, str]:
    """The versions in constraints.txt."""
    found: dict[str, str] = {}
    for line in (root / "constraints.txt").read_text().splitlines():
        text = line.partition("#")[0].strip()
        if not text:
            continue
        name, equals, version = text.partition("==")
        if not equals or not version.strip() or canonicalize_name(name) in found:
            raise SystemExit(f"audit: constraints.txt has the line {line!r}; write each package once, as NAME==VERSION")
        found[canonicalize_name(name)] = version.strip()
    return found


def unpinned(root: Path = ROOT) -> list[str]:
    """Declared dependencies without a pin, or with one outside of their range."""
    known, wrong = pins(root), []
    for one in [r for r in declared(root) if r.name not in APART]:
        version = known.get(canonicalize_name(one.name))
        if version is None:
            wrong.append(f"{one} of pyproject.toml has no pin in constraints.txt")
        elif not one.specifier.contains(version, prereleases=True):
            wrong.append(f"{one} of pyproject.toml does not allow the pin {version} of constraints.txt")
    return wrong


def loose_installs(root: Path = ROOT) -> list[str]:
    """Lines of the Makefile and of CI that install something without the pins."""
    files = [root / "Makefile", *sorted(p for p in (root / ".ci").iterdir() if p.is_file() and p.suffix != ".py")]
    lines = [
        (f.name, line.strip())
        for f in files
        for line in f.read_text().splitlines()
        if re.search(r"\b(pip3?|uv|pipx|conda)\b.* install\b|\bpip install\b", line)
    ]
    return [f"{name} installs without -c constraints.txt: {line}" for name, line in lines if "-c constraints.txt" not in line]


def installed() -> dict[str, Distribution]:
    """What is here of the declared dependencies, and of what they need in turn."""
    found: dict[str, Distribution] = {}
    todo = declared()
    while todo:
        one = todo.pop()
        name = canonicalize_name(one.name)
        extras = {*one.extras, ""}
        if name in found or (one.marker and not any(one.marker.evaluate({"extra": e}) for e in extras)):
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # of an extra that is not installed here
            continue
        needs = map(Requirement, found[name].requires or [])
        todo += [r for r in needs if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in extras)]
    return found


def licence(one: Distribution) -> str:
    """What a package says of its licence; "" if nothing."""
    own = one.metadata
    listed = [c.rpartition("::")[2].strip() for c in own.get_all("Classifier") or [] if c.startswith("License ::")]
    return own["License-Expression"] or ", ".join(listed) or (own["License"] or "").strip().partition("\n")[0]


def unknown_licences(packages: dict[str, Distribution]) -> list[str]:
    """Packages whose licence is not known, or none of those that fit."""
    found = []
    for name, one in packages.items():
        said = licence(one)
        parts = re.split(r"\b(?:AND|OR|WITH)\b|[,;]", said)
        if name not in KNOWN and not all(FREE.search(part) for part in parts):
            found.append(f"{name} has the licence {said!r}, which is none of those that are known to fit")
    return found


def other_versions(packages: dict[str, Distribution]) -> list[str]:
    """What is installed in another version than the one that is pinned; a local part, such as +cpu, is no other version."""
    known = pins()
    here = {name: one.version.partition("+")[0] for name, one in packages.items()}
    return [f"{name} is installed as {v}, and pinned as {known[name]}" for name, v in here.items() if name in known and known[name] != v]


def vulnerabilities(versions: dict[str, str], seconds: float) -> list[tuple[str, str]] | str:
    """Known vulnerabilities of packages as (name, sentence); or, as a text, why nobody could be asked."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("".join(f"{name}=={version}\n" for name, version in versions.items()))
        file.flush()
        command = [sys.executable, "-m", "pip_audit", "--requirement", file.name, "--no-deps", "--disable-pip", "--format", "json"]
        command += ["--progress-spinner", "off", "--timeout", "5"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            return f"no answer in {seconds:g} seconds"
    try:
        answer: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        return (lines[-1] if lines else f"pip-audit ended with {done.returncode}")[:200]
    passed_over = [one for one in answer if "vulns" not in one]  # which pip-audit counts as sound
    if len(passed_over) == len(answer):
        return f"all were passed over: {passed_over[0].get('skip_reason', '')[:120] if passed_over else 'an empty answer'}"
    if passed_over:
        print(f"audit: nothing is known of {', '.join(one['name'] for one in passed_over)}")
    found = []
    for one in answer:
        for v in one.get("vulns", []):
            if not {v["id"], *v.get("aliases", [])} & set(ACCEPTED):
                mended = ", ".join(v.get("fix_versions", [])) or "no version yet"
                found.append((one["name"], f"{one['name']} {one['version']} has {v['id']}; mended in {mended}"))
    return found


def looked_up(versions: dict[str, str]) -> list[tuple[str, str]] | str:
    """:func:`vulnerabilities`, where one that everybody knows is found; who does not find that, has not looked."""
    probe = vulnerabilities(KNOWN_BAD, QUICK)
    if isinstance(probe, str):
        return probe
    return vulnerabilities(versions, LONG) if probe else "a version that is known to be vulnerable was called sound"


def main() -> int:
    packages = installed()
    wrong = [*unpinned(), *loose_installs(), *unknown_licences(packages), *other_versions(packages)]
    versions = {name: one.version.partition("+")[0] for name, one in sorted(packages.items())}
    asked = looked_up(versions)
    for line in [*wrong, *([] if isinstance(asked, str) else [sentence for _, sentence in asked])]:
        print(f"audit: {line}", file=sys.stderr)
    print(
        f"audit: {len(declared())} declared dependencies are pinned, {len(packages)} packages have known licences"
        if not wrong
        else "audit: FAILED"
    )
    if isinstance(asked, str):
        print(f"audit: known vulnerabilities were NOT looked up: {asked}")
    else:
        print(f"audit: {len(asked)} known vulnerabilities in {len(versions)} packages")
    return 1 if wrong or (not isinstance(asked, str) and asked) else 0


if __name__ == "__main__":
    sys.exit(main())
