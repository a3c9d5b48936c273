"""A torch module as an ONNX model, with any number of examples, by torch's own exporter."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from headstart.errors import ExportError, HeadstartError
from headstart.program.watch import few_examples
from headstart.task_checks import as_tensors

OPSET = 18
"""Of all graphs: the oldest that torch's exporter writes without converting, which every onnxruntime of 2023 on runs."""
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
LARGEST = 2**31 - 2**24
"""Bytes of a model in one file, a little below the 2 GiB that protobuf allows."""
_CHATTY = "torch.onnx._internal.exporter._registration"


def package(name: str) -> Any:
    """One of the packages of the extra ``onnx``, imported when it is needed.

    Raises:
        ExportError: one of them is not installed.
    """
    try:
        for own in PACKAGES:
            importlib.import_module(own)
        return importlib.import_module(name)
    except ImportError as error:
        raise ExportError(f"ONNX graphs need the packages {', '.join(PACKAGES)} ({error}): pip install 'headstart[onnx]'") from error


def checked_example(example_x: Any) -> Tensor:
    """(n, …) examples on the CPU.

    Raises:
        ExportError: they are no tensor of one or more examples, or of a type that numpy does not have.
    """
    x = as_tensors(example_x)
    if not isinstance(x, Tensor) or x.dim() < 2 or not len(x):
        found = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ExportError(f"example_x is {found}, but a graph has one input: give one tensor (n, …) of one or more examples")
    if x.dtype == torch.bfloat16:
        raise ExportError("example_x is in bfloat16, which onnxruntime has no arrays of; export the model and examples after .float()")
    return x.detach().cpu()


def random_like(x: Tensor, n: int, seed: int = 0) -> Tensor:
    """n random examples like those given: of their mean and spread, or whole numbers between their least and largest."""
    generator = torch.Generator().manual_seed(seed)
    shape = (n, *x.shape[1:])
    if x.is_floating_point():
        wide = x.double()
        spread = float(wide.std(correction=0)) or 1.0
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * spread + wide.mean()).to(x.dtype)
    if x.dtype == torch.bool:
        return torch.rand(shape, generator=generator) < 0.5
    return torch.randint(int(x.min()), int(x.max()) + 1, shape, generator=generator, dtype=x.dtype)


def attempted(answers: Callable[[], Tensor]) -> Tensor | None:
    """Answers of a model in double precision, where it runs in that."""
    try:
        return answers().detach().cpu().double()
    except (RuntimeError, TypeError, HeadstartError):  # such as a layer that makes its constants in single precision
        return None


def doubled(x: Tensor) -> Tensor:
    """Real examples in double precision."""
    return x.double() if x.is_floating_point() else x


def as_onnx(module: nn.Module, x: Tensor, inputs: str, outputs: str) -> Any:
    """The ONNX model of a module in evaluation mode on the CPU, which the export may change.

    Args:
        module: takes (n, …) examples and returns one tensor of n rows.
        x: (n, …) examples.
        inputs, outputs: the names of input and output in the graph.

    Raises:
        ExportError: torch cannot export it, or it is too large for one file.
    """
    package("onnx")
    size = sum(v.nbytes for v in (*module.parameters(), *module.buffers()))
    if size > LARGEST:
        raise ExportError(f"the weights take {size / 2**30:.1f} GiB, but an ONNX graph in one file holds 2 GiB; export a smaller model")
    # Pictures with channels last would put a gather into the graph wherever torch views them in another order.
    module = module.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    three = few_examples(x, 3).contiguous()  # one alone would be taken for a number that is always one
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                (three,),
                input_names=[inputs],
                output_names=[outputs],
                opset_version=OPSET,
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("n")},),
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # whatever the exporter has against a model
        said = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        raise ExportError(
            f"torch cannot export this model as an ONNX graph: {said[0]} — a branch on values, or on the number of examples, must be"
            " written with torch.where or left out"
        ) from error
    return _bare(program.model_proto)  # type: ignore[union-attr]


def _bare(model: Any) -> Any:
    """Without the notes of torch's exporter, which name files of this machine and are larger than many a net."""
    graph = model.graph
    del graph.metadata_props[:], graph.value_info[:]
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps back what torch's exporter says of itself and not of the model."""
    logger = logging.getLogger(_CHATTY)
    level = logger.level
    logger.setLevel(logging.ERROR)  # a line for each operator of torchvision, where that is not installed
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*", category=FutureWarning)
            warnings.filterwarnings("ignore", message="Exporting a model while it is in training mode", category=UserWarning)
            yield
    finally:
        logger.setLevel(level)
