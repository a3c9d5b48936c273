"""The page as one file that needs no server: the start and what runs it in a browser are in it."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from headstart.container import write_atomically
from headstart.errors import ConfigError, DataError
from headstart.export import LearnerParts, export_learner_parts
from headstart.export.body import package
from headstart.playing.about import about, drawable
from headstart.playing.asked import ALL, STEPS
from headstart.playing.held_out import HeldOut
from headstart.using import TrainedStart
from headstart.using.preprocessing import FRAME, Preprocessing

RUNTIME, VERSION = "onnxruntime-web", "1.30.0"
"""The npm package that runs graphs in a browser, and the version that the page is tested with."""
MODULE, BINARY = "dist/ort.wasm.bundle.min.mjs", "dist/ort-wasm-simd-threaded.wasm"
"""Of its bundles the smallest that runs on WebAssembly alone, and what it needs to."""
SERVED = "play with this start on the page that is served: headstart playground without --page"


@dataclass(frozen=True)
class Runtime:
    """What runs graphs in a browser.

    Args:
        module: of JavaScript.
        binary: of WebAssembly.
        version: of the package.
        licence: its text, and the notices of what is compiled into it.
    """

    module: bytes
    binary: bytes
    version: str
    licence: str

    @classmethod
    def of(cls, folder: str | os.PathLike[str] | None) -> Runtime:
        """That of a folder of the npm package; None stands for the one under the current folder.

        Raises:
            ConfigError: it is not there.
        """
        own = Path("node_modules") / RUNTIME if folder is None else Path(folder)
        try:
            version = str(json.loads((own / "package.json").read_text(encoding="utf-8"))["version"])
            module, binary = ((own / name).read_bytes() for name in (MODULE, BINARY))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConfigError(
                f"a page without a server needs {RUNTIME}, which is not whole in {str(own)!r} ({error}):"
                f" npm install {RUNTIME}@{VERSION}, here or elsewhere, and then --runtime with its folder"
            ) from error
        # The npm package holds no text of its licence; the package for Python is of the same sources, and has it.
        texts = Path(package("onnxruntime").__file__).parent
        licence = "\n\n".join((texts / name).read_text("utf-8", "replace") for name in ("LICENSE", "ThirdPartyNotices.txt"))
        return cls(module.rpartition(b"//# sourceMappingURL=")[0] or module, binary, version, licence)


def page_file(start: TrainedStart, path: str | os.PathLike[str], runtime: str | os.PathLike[str] | None = None) -> Path:
    """Writes the page to play with as one file, which learns and recognises in the browser, from a disk or any web host.

    Args:
        start: learns what is drawn: a linear head adapts, as :func:`export_learner_onnx` takes it, to drawings in one channel.
        path: of the file.
        runtime: the folder of the npm package onnxruntime-web; ``node_modules/onnxruntime-web`` if not given.

    Returns:
        The path.

    Raises:
        ConfigError: the start takes no drawings, the runtime is not there, or the folder does not exist.
        ExportError: a package is missing, or no graph can hold the start's adaptation.

    Example:
        >>> from headstart.errors import ConfigError
        >>> try:
        ...     page_file(TrainedStart.load("characters"), "page.html", runtime="nowhere")
        ... except ConfigError as error:
        ...     print("npm install onnxruntime-web" in str(error))
        True
    """
    own, path = _drawn(drawable(start)), Path(path)
    if not path.parent.is_dir() or path.is_dir():
        what = f"{str(path)!r} is a folder" if path.is_dir() else f"there is no folder {str(path.parent)!r}"
        raise ConfigError(f"{what}; name a file in a folder that exists, such as page.html")
    ort = Runtime.of(runtime)
    parts = export_learner_parts(start.learner, start.example())
    held, pool = _held_out(start)
    said = {**_said(start, own, parts), "held": held}
    packed = {"runtime-module": ort.module, "runtime-binary": ort.binary, "body": parts.body, "adaptation": parts.adaptation}
    text = _page(said, packed | ({} if pool is None else {"held-out-features": pool}), ort)
    write_atomically(path, lambda temporary: temporary.write_bytes(text.encode()))
    return path


def _drawn(start: TrainedStart) -> Preprocessing:
    """How it reads drawings, if the page can do the same."""
    own = start.preprocessing
    if own.ink not in ("framed", "white") or own.shape[0] != 1 or own.fit != "pad":
        what = f"ink={own.ink!r}, fit={own.fit!r} and {own.shape[0]} channels"
        raise ConfigError(
            f"this start reads pictures with {what}; a page without a server reads drawings in one channel alone, as starts of glyphs and"
            f" omniglot do (ink='framed' or 'white', fit='pad'): {SERVED}"
        )
    return own


def _said(start: TrainedStart, own: Preprocessing, parts: LearnerParts) -> dict[str, Any]:
    """What local.js is told of a start."""
    calibration = start.calibration
    kept = None if calibration is None else {k: getattr(calibration, k) for k in ("temperature", "threshold", "by")}
    centre, spread = (0.0, 1.0) if own.mean is None or own.std is None else (own.mean[0], own.std[0])
    return {
        "about": about(start),
        "preprocessing": {"size": own.shape[-1], "ink": own.ink, "centre": centre, "spread": spread, "frame": FRAME},
        "calibration": kept,
        "outputs": parts.outputs,
        "lr": parts.lr,
        "most": ALL,
        "most_steps": STEPS,
    }


def _held_out(start: TrainedStart) -> tuple[dict[str, Any] | None, bytes | None]:
    """Held-out episodes as rows of a pool, and the features of the pool in single precision; None where none are at hand."""
    try:
        found = HeldOut.of(start, HeldOut.drawn(start))
    except DataError:  # such as of fonts that are missing: the page does without
        return None, None
    if found is None:
        return None, None
    features = found.embedded.features.flatten(1).float().cpu().numpy()
    sides = {name: getattr(found.tasks, name) for name in ("support", "query")}
    tasks = [
        {k: v for name, side in sides.items() for k, v in ((name, side.index[t].tolist()), (f"{name}_y", side.y[t].tolist()))}
        for t in range(len(found.tasks))
    ]
    return {"about": found.about, "width": features.shape[1], "tasks": tasks}, features.astype("<f4").tobytes()


def _page(said: Mapping[str, Any], packed: Mapping[str, bytes], ort: Runtime) -> str:
    """The page with everything in it, and a policy by which it can load nothing else."""
    page, style, *scripts = (
        (files("headstart") / "playing" / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "local.js", "page.js")
    )
    allowed = " ".join(map(_digest, scripts))
    # The runtime is imported from a blob that local.js makes: nobody else can make one without running a script first.
    policy = (
        f"default-src 'none'; script-src {allowed} blob: 'wasm-unsafe-eval'; style-src {_digest(style)}; img-src data:; base-uri 'none';"
        " form-action 'none'"
    )
    try:
        data = json.dumps(said, allow_nan=False).replace("<", "\\u003c")
    except ValueError as error:
        raise ConfigError(
            "a number of this start, such as its temperature or threshold, is not finite; calibrate or train it again"
        ) from error
    inside = [
        f"<details><summary>It runs on ONNX Runtime Web {html.escape(ort.version)}</summary><pre>{html.escape(ort.licence)}</pre></details>"
    ]
    inside += [f'<script type="application/json" id="start-data">{data}</script>']
    for name, content in packed.items():
        text = base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()
        inside.append(f'<script type="application/gzip" id="{name}">{text}</script>')
    inside += [f'<script type="module">{script}</script>' for script in scripts]
    for old, new in (
        ('<meta charset="utf-8">', f'<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        ('<link rel="stylesheet" href="page.css">', f"<style>{style}</style>"),
        ('<script type="module" src="page.js"></script>\n', ""),
        ("</body>", "\n".join((*inside, "</body>"))),
    ):
        page = page.replace(old, new, 1)
    return page


def _digest(text: str) -> str:
    """The source expression that allows an element with this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
