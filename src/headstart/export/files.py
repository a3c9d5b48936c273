"""Checks an ONNX model against torch, and puts it in its place."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headstart.container import write_atomically
from headstart.errors import ExportError
from headstart.export.body import package
from headstart.version import __version__

TOLERANCE, TIMES, MOST = 1e-4, 10, 1e-2
"""What a graph may differ from torch by; how many times the error of torch's own single precision, where that is more; and at most."""
KEY = "headstart"
"""Of the metadata, which is JSON."""


@dataclass(frozen=True)
class Case:
    """Inputs by name, and what torch makes of them.

    Args:
        inputs: tensors, or plain numbers as numpy has them.
        expected: the first output.
        exact: the same in double precision, or None where the model does not run in it; asked for only where it is needed.
        unit: what a difference is relative to: 1 for probabilities.
    """

    inputs: Mapping[str, Tensor | np.ndarray[Any, Any]]
    expected: Tensor
    exact: Callable[[], Tensor | None] = lambda: None
    unit: float = 1.0

    def allowed(self, difference: float) -> float:
        """The largest difference that is no fault of the graph.

        Logits that are large beside their differences lose digits in single precision, in torch as in the graph.
        """
        least, most = TOLERANCE * self.unit, MOST * self.unit
        exact = self.exact() if least < difference <= most else None
        return least if exact is None else min(max(least, TIMES * float((self.expected.double() - exact).abs().max())), most)


def described(**values: Any) -> dict[str, Any]:
    """The metadata of a graph: the version of the library, and what is given and not None."""
    return {"version": __version__, **{k: v for k, v in values.items() if v is not None}}


def checked_classes(classes: Sequence[str] | None, outputs: int | None) -> list[str] | None:
    """Class names as a list.

    Raises:
        ExportError: there are not as many as outputs.
    """
    if classes is None:
        return None
    names = [str(name) for name in classes]
    if outputs is not None and len(names) != outputs:
        raise ExportError(f"classes has {len(names)} names, but the model has {outputs} outputs; give one for each, in the order of labels")
    return names


def save(model: Any, path: str | os.PathLike[str], metadata: Mapping[str, Any], cases: Sequence[Case]) -> Path:
    """Writes a model as one file, after onnxruntime gave what torch gives.

    Args:
        model: the ONNX model.
        path: of the file, which is replaced as a whole if it exists.
        metadata: kept as JSON in the model's own.
        cases: inputs and expected outputs.

    Raises:
        ExportError: an output differs by more than 1e-4 where single precision is good for that, or the folder does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise ExportError(f"path={str(path)!r}: there is no folder {str(path.parent)!r}; make it first")
    content = checked(model, metadata, cases)
    write_atomically(path, lambda temporary: temporary.write_bytes(content))
    return path


def checked(model: Any, metadata: Mapping[str, Any], cases: Sequence[Case]) -> bytes:
    """The content of the file of a model, after onnxruntime gave what torch gives; arguments and errors as in :func:`save`."""
    onnx = package("onnx")
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {KEY: json.dumps(metadata)})
    model.producer_name = "headstart"
    content: bytes = model.SerializeToString()
    _check(content, cases)
    return content


def runner(graph: str | os.PathLike[str] | bytes) -> Callable[[Mapping[str, Tensor | np.ndarray[Any, Any]]], list[np.ndarray[Any, Any]]]:
    """A function from inputs by name to the outputs of a graph, a file or its content, by onnxruntime on the CPU with torch's threads."""
    runtime = package("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = runtime.InferenceSession(os.fspath(graph), options, providers=["CPUExecutionProvider"])
    array = lambda v: v.detach().cpu().numpy() if isinstance(v, Tensor) else np.asarray(v)  # noqa: E731
    return lambda inputs: session.run(None, {k: array(v) for k, v in inputs.items()})  # type: ignore[no-any-return]


def _check(content: bytes, cases: Sequence[Case]) -> None:
    try:
        package("onnx").checker.check_model(content, full_check=True)
        run = runner(content)
        found = [run(case.inputs)[0] for case in cases]
    except ExportError:
        raise
    except Exception as error:  # the errors of onnxruntime have no common class
        raise ExportError(f"onnxruntime cannot run the graph: {str(error).strip().splitlines()[0]}; nothing was written") from error
    for case, own in zip(cases, found, strict=True):
        expected = case.expected.detach().cpu().double().numpy()
        if own.shape != expected.shape:
            raise ExportError(f"the graph gives shape {own.shape} where torch gives {expected.shape}; nothing was written")
        largest = float(np.abs(own.astype(np.float64) - expected).max(initial=0.0))
        if not largest <= (allowed := case.allowed(largest)):
            raise ExportError(
                f"the graph differs from torch by up to {largest:.3g} on {len(expected)} examples, and at most {allowed:.3g}"
                " is allowed; nothing was written. Look for what is random, for half precision, or for a step size at which descent"
                " diverges"
            )
