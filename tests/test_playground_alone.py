"""The playground's page as one file: it holds all it needs, and says in a browser what the server says."""

from __future__ import annotations

import base64
import io
import json
import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import headstart as hs
from headstart.errors import ConfigError, ExportError
from headstart.using import Preprocessing, TrainedStart

pytest.importorskip("fastapi", reason="the page needs headstart[serve]")
pytest.importorskip("onnx", reason="needs pip install 'headstart[onnx]'")
pytest.importorskip("onnxruntime", reason="needs pip install 'headstart[onnx]'")
pytest.importorskip("onnxscript", reason="needs pip install 'headstart[onnx]'")
from fastapi.testclient import TestClient

from fakes import source
from headstart.cli import main
from headstart.playing import alone, page_app, page_file
from played import PICTURES, SYMBOLS, draw, drawing, start, task, teach, until

RUNTIME = Path(os.environ.get("HEADSTART_ONNXRUNTIME_WEB") or Path(__file__).parent.parent / "node_modules" / alone.RUNTIME)
WHITE = Preprocessing("pictures", (1, 28, 28), (0.1,), (0.3,), fit="pad", ink="white")
net = lambda ways=5: hs.models.conv4(channels=1, ways=ways, size=28, filters=8)  # noqa: E731


def stand_in(folder: Path) -> Path:
    """A folder like that of the npm package, with nothing in it that runs."""
    (folder / "dist").mkdir(parents=True)
    (folder / "package.json").write_text('{"name": "onnxruntime-web", "version": "1.2.3"}')
    (folder / alone.MODULE).write_bytes(b"export default 1;\n//# sourceMappingURL=elsewhere.map\n")
    (folder / alone.BINARY).write_bytes(b"\0asm")
    return folder


# -- without a browser -----------------------------------------------------------------------------------------------------


def test_everything_is_in_the_file(tmp_path: Path) -> None:
    """No element names an address, each script is allowed by its digest, and all that is packed is there."""
    name = "</script><b>"
    path = page_file(start(about={"data": name}), tmp_path / "page.html", stand_in(tmp_path / "ort"))
    found: list[tuple[str, dict[str, Any]]] = []
    texts: dict[int, str] = {}

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.append((tag, dict(attrs)))

        def handle_data(self, data: str) -> None:
            texts[len(found) - 1] = texts.get(len(found) - 1, "") + data

        def handle_endtag(self, tag: str) -> None:
            found.append((f"/{tag}", {}))

    text = path.read_text()
    Reader().feed(text)
    addresses = [v for _, own in found for k, v in own.items() if k in ("src", "href", "action", "data", "srcset") and v is not None]
    assert [a for a in addresses if not a.startswith("data:")] == []
    assert "@import" not in text.partition("</style>")[0]
    assert "url(" not in text.partition("</style>")[0]
    [policy] = [own["content"] for tag, own in found if own.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "http" not in policy
    assert "unsafe-inline" not in policy
    assert "'unsafe-eval'" not in policy
    assert "connect-src" not in policy
    run = [texts[i] for i, (tag, own) in enumerate(found) if tag == "script" and own.get("type") == "module"]
    assert len(run) == 2
    assert policy.count("sha256-") == 3
    assert all(alone._digest(t) in policy for t in [*run, *(texts[i] for i, (tag, _) in enumerate(found) if tag == "style")])
    packed = {own["id"]: i for i, (tag, own) in enumerate(found) if tag == "script" and "id" in own}
    assert set(packed) == {"start-data", "runtime-module", "runtime-binary", "body", "adaptation"}
    assert json.loads(texts[packed["start-data"]])["about"]["start"]["data"] == name
    module = alone.gzip.decompress(base64.b64decode(texts[packed["runtime-module"]]))
    assert module == b"export default 1;\n", "and not the address of its source map"
    assert "Permission is hereby granted" in text
    assert str(tmp_path) not in text


def test_what_a_page_alone_cannot_do_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where there is no node_modules
    ort, page = stand_in(tmp_path / "ort"), tmp_path / "page.html"
    for wrong in (
        Preprocessing("pictures", (1, 28, 28), fit="pad"),
        Preprocessing("pictures", (1, 28, 28), fit="crop", ink="white"),
        Preprocessing("pictures", (3, 28, 28), fit="pad", ink="framed"),
    ):
        with pytest.raises(ConfigError, match="play with this start on the page that is served"):
            page_file(start(preprocessing=wrong), page, ort)
    with pytest.raises(ConfigError, match="takes vectors"):
        page_file(start(hs.protonet(hs.models.mlp(4, 2)), preprocessing=Preprocessing("vectors", (4,))), page, ort)
    with pytest.raises(ConfigError, match="no folder"):
        page_file(start(), tmp_path / "nowhere" / "page.html", ort)
    with pytest.raises(ExportError, match="not one linear layer"):
        page_file(start(hs.maml(net(), 2, 0.01)), page, ort)
    with pytest.raises(ExportError, match="MetaSGD"):
        page_file(start(hs.metasgd(net(), 2, 0.01, adapt="head")), page, ort)
    with pytest.raises(ConfigError, match="is a folder"):
        page_file(start(), tmp_path, ort)
    with pytest.raises(ConfigError, match="is not finite"):
        page_file(start(threshold=float("nan")), page, ort)
    start().save(file := tmp_path / "start.safetensors")
    (ort / alone.BINARY).unlink()
    for arguments in (["--page", str(page)], ["--page", str(page), "--runtime", str(ort)], ["--runtime", str(ort)]):
        assert main(["playground", str(file), *arguments]) == 2
    assert capsys.readouterr().err.count(f"npm install onnxruntime-web@{alone.VERSION}") == 2
    assert not page.exists()


# -- in a browser ------------------------------------------------------------------------------------------------------------


STARTS: dict[str, Callable[[], TrainedStart]] = {
    "prototypes": lambda: start(
        hs.protomaml(hs.models.conv4(1, 3, source().test.shape[-1], filters=4), 2, 0.05, 0.01), -6.0, "nearness",
        about={"data": "glyphs", "ways": 3, "shots": 1},
        preprocessing=Preprocessing("pictures", source().test.shape, (0.127,), (0.304,), fit="pad", ink="framed"),
    ),
    "ridge": lambda: TrainedStart(hs.r2d2(net()), PICTURES),
    "model": lambda: start(hs.anil(net(), 2, 0.4), preprocessing=WHITE),
}  # fmt: skip


@pytest.fixture(scope="module", params=["prototypes", "model", pytest.param("ridge", marks=pytest.mark.slow)])
def own(request: pytest.FixtureRequest) -> TrainedStart:
    torch.manual_seed(1)
    return STARTS[request.param]()


@pytest.fixture(scope="module")
def address(own: TrainedStart, browser: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the file."""
    if not (RUNTIME / alone.BINARY).is_file():
        pytest.skip(f"there is no {alone.RUNTIME} in node_modules or HEADSTART_ONNXRUNTIME_WEB")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headstart.data.load", lambda name: source())
        return page_file(own, tmp_path_factory.mktemp("alone") / "page.html", RUNTIME).as_uri()


@pytest.fixture
def page(page: Any, address: str) -> Any:
    page.goto(address)
    page.locator("#classes .pad").nth(4).wait_for()
    return page


def pixels(url: str) -> bytes:
    from PIL import Image

    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("L").tobytes()  # type: ignore[no-any-return]


def upload(width: int, height: int, few: int) -> str:
    """A coloured picture, smooth where few of its pixels are drawn, on light paper where they are odd and dark where they are even."""
    from PIL import Image

    random = np.random.default_rng(few)
    small = random.integers(0, 256, (min(few, height), min(few, width), 3), np.uint8)
    small[[0, -1]] = small[:, [0, -1]] = 255 * (few % 2)
    Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR).save(file := io.BytesIO(), "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


UPLOADS = [upload(256, 130, 6), upload(256, 21, 256), upload(30, 30, 5), upload(112, 112, 112), upload(150, 149, 7), drawing([])]


def near(found: Any, expected: Any) -> None:
    """The same answers; numbers to 1e-4, and pictures to the pixel."""
    if isinstance(expected, dict):
        assert set(found) == set(expected)
        for key in set(expected) - {"id", "ms"}:
            near(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            near(*pair)
    elif isinstance(expected, float | int) and not isinstance(expected, bool):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)
    elif isinstance(expected, str) and expected.startswith("data:"):
        assert pixels(found) == pixels(expected)
    else:
        assert found == expected


def test_it_says_what_the_server_says(page: Any, own: TrainedStart, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headstart.data.load", lambda name: source())
    ask = lambda path, body=None: page.evaluate("([path, body]) => answers(path, body)", [path, body])  # noqa: E731
    with TestClient(page_app(own), base_url="http://127.0.0.1") as server:
        said = server.get("/about").json()
        near(ask("about"), said)
        few = task("A", "B", "C", twice=("A", "B"))
        few[2]["drawings"] += UPLOADS
        rates = [{}] if said["lr"] is None else [{}, {"lr": 0.01, "steps": 7}, {"steps": 0}, {"lr": 50.0, "steps": 3}]
        for more in rates:
            asked = {"classes": few, **more}
            expected = server.post("/adapt", json=asked).json()
            near(found := ask("adapt", asked), expected)
            near(ask(f"curves/{found['id']}"), server.get(f"/curves/{expected['id']}").json())
            for picture in [drawing(lines, 0.7) for lines in SYMBOLS.values()] + UPLOADS[:2]:
                answer = server.post("/predict", json={"id": expected["id"], "drawing": picture}).json()
                near(ask("predict", {"id": found["id"], "drawing": picture}), answer)
        # In tall pictures Pillow 13 goes along columns first, and the Pillow of before along rows.
        tall = [{"name": "A", "drawings": [upload(57, 256, 256), upload(8, 200, 8)]}, *task("B")]
        expected, found = server.post("/adapt", json={"classes": tall}).json(), ask("adapt", {"classes": tall})
        for one, other in zip(found["classes"][0]["seen"], expected["classes"][0]["seen"], strict=True):
            assert np.abs(np.subtract(*(np.frombuffer(pixels(v), np.uint8).astype(int) for v in (one, other)))).max() <= 2
        for query in ("", "?lr=0.3") if said["lr"] else ("",):
            found, expected = ask(f"held-out{query}"), server.get(f"/held-out{query}").json()
            # Of 900 answers of an untrained network a few are so close that the last digit decides.
            np.testing.assert_allclose(found.pop("accuracy", []), expected.pop("accuracy", []), atol=0.004)
            near(found, expected)
            assert bool(found) == (own.about is not None)
    assert page.evaluate("answers('predict', {id: 'gone', drawing: ''}).catch((e) => e.status)") == 404
    wrong = {"classes": [{"name": "A", "drawings": ["AAAA"]}, *task("B")]}
    assert "not a picture" in page.evaluate("(body) => answers('adapt', body).catch((e) => e.message)", wrong)
    if own.learner.start.head == "own":
        many = {"classes": [{"name": str(i), "drawings": [drawing(SYMBOLS["A"])]} for i in range(6)]}
        assert "5 outputs" in page.evaluate("(body) => answers('adapt', body).catch((e) => e.message)", many)


@pytest.mark.parametrize("own", ["prototypes"], indirect=True)
def test_drawing_on_it(page: Any, own: TrainedStart) -> None:
    teach(page)
    assert page.locator(".drawings img").count() == 5
    if own.calibration is not None:
        page.locator("#strict").uncheck()
    draw(page, page.locator("#query .pad"), SYMBOLS["D"])
    until(page, f"{list(SYMBOLS)}.includes(document.getElementById('label').textContent)")
    until(page, "/^\\d+\\.\\d/.test(document.getElementById('predict-ms').textContent)")
    assert re.search("before the first step", page.locator("#loss-said").inner_text(), re.IGNORECASE)
