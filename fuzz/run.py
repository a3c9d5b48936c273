"""Coverage-guided fuzzing of the readers: whatever leaves one of them but a HeadstartError is written to a file and ends it.

python fuzz/run.py SECONDS [READER ...]      (pip install -c constraints.txt -e '.[fuzz]')
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import atheris

WATCHED = ["headstart.data", "headstart.container", "headstart.using", "headstart.loading", "headstart.training"]
WATCHED += ["zipfile", "tarfile", "pickletools", "numpy.lib", "PIL", "safetensors"]
with atheris.instrument_imports(include=WATCHED):
    from readers import READERS
NET = "does not hold what such a file should"
"""Of the message of ``container.understood``, which catches what a reader did not see coming: no fault, but it could be said better."""


def fuzz(name: str, seconds: int, findings: Path) -> None:
    """Fuzzes one reader in this process, which libFuzzer ends."""
    reader, seen = READERS[name], set[str]()
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        for i, content in enumerate(reader.seeds()):
            (corpus / str(i)).write_bytes(content)

        def one(content: bytes) -> None:
            said = reader(content, Path(folder))
            kind = said.partition(NET)[2].partition(":")[0]  # of the error that was caught
            if NET in said and kind not in seen:
                seen.add(kind)
                print(f"caught by the net: {said[:300]}", file=sys.stderr)

        limits = [f"-max_total_time={seconds}", "-rss_limit_mb=4096", "-timeout=30", "-max_len=65536", "-print_final_stats=1"]
        atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={findings}/{name}-", str(corpus)], one)
        atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seconds", type=int, help="for each reader")
    parser.add_argument("readers", nargs="*", default=list(READERS), help=", ".join(READERS))
    parser.add_argument("--findings", type=Path, default=Path("build/fuzz"), help="folder for inputs that are faults")
    parser.add_argument("--here", action="store_true", help="in this process")
    options = parser.parse_args()
    options.findings.mkdir(parents=True, exist_ok=True)
    if options.here:
        fuzz(options.readers[0], options.seconds, options.findings)
        return 0
    faults = 0
    for name in options.readers:
        command = [sys.executable, __file__, str(options.seconds), name, "--here", "--findings", str(options.findings)]
        with tempfile.TemporaryDirectory() as own:
            done = subprocess.run(
                command, env={**os.environ, "HEADSTART_CACHE": own}, capture_output=True, text=True, errors="replace", check=False
            )
        count = re.search(r"number_of_executed_units:\s*(\d+)", done.stderr)
        nets = sorted({line for line in done.stderr.splitlines() if line.startswith("caught by the net")})
        verdict = "nothing found" if done.returncode == 0 else f"FOUND (exit {done.returncode}), see {options.findings}"
        print(f"{name:<20} {int(count[1]) if count else 0:>9,} executions, {len(nets)} kinds caught by the net: {verdict}", flush=True)
        print("\n".join(f"    {line}" for line in nets), end="\n" if nets else "")
        if done.returncode:
            faults += 1
            print(done.stdout[-3000:], file=sys.stderr)
            tail = [line for line in done.stderr.splitlines() if line.startswith(("SUMMARY", "artifact", "=="))]
            print("\n".join(tail[-40:]), file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Exception:  # atheris would end without a word
        traceback.print_exc()
        sys.exit(2)
