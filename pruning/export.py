"""Writes a network, pruned or not, in a form that runs without its code, and checks what was written.

from pruning.export import export

export(model, torch.randn(1, 3, 32, 32), Path("network.onnx"), "onnx")
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import io
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pruning.errors import UsageError
from pruning.modules.calls import (
    RUN_ERRORS,
    batch_size_of,
    call,
    check_network,
    device_of,
    mapped,
    split_inputs,
    tensors_in,
)
from pruning.modules.modes import undisturbed
from pruning.modules.weights import check_dense

SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2"}
_ONNX_LIMIT = 1_500_000_000  # bytes; a file of that format cannot hold more than 2 GB, so weights go beside it

_ONNX_FLOATS = (torch.float16, torch.float32, torch.float64)  # those that numpy, and so a runtime's inputs, can hold

Runner = Callable[[Any], list[Tensor]]


@dataclass
class Exported:
    """What `export` wrote.

    Args:
        path: the file.
        any_batch: whether it takes batches of any size; otherwise it takes `batch_size` samples.
        batch_size: of the inputs it was written with.
        error: largest difference of an output from the network's, relative to the largest output.
    """

    path: Path
    any_batch: bool
    batch_size: int
    error: float

    def __str__(self) -> str:
        batches = "batches of any size" if self.any_batch else f"batches of {self.batch_size}"
        return f"wrote {self.path.name} for {batches}; its outputs differ by {self.error:.0e} of the largest"


def check_export(kind: str) -> None:
    """Raises UsageError if a format is unknown or the packages it needs are missing."""
    if kind not in SUFFIXES:
        raise UsageError(f"There is no export format {kind!r}; there are {' and '.join(SUFFIXES)}.")
    needed = ("onnx", "onnxscript") if kind == "onnx" else ()
    missing = [package for package in needed if importlib.util.find_spec(package) is None]
    if missing:
        lacks = " and ".join(missing)
        raise UsageError(f"The export to ONNX needs {lacks}, which is not installed: pip install {' '.join(missing)}")


def export(model: nn.Module, example_inputs: Any, path: str | Path, kind: str) -> Exported:
    """Writes a network in eval mode to a file, runs the file, and compares.

    The batch, dimension 0 of the first input and of all inputs that agree with it, may have any size afterwards if the
    network's code allows it.

    Args:
        model: it stays as it is.
        example_inputs: a tensor, a tuple of arguments or a dict of keywords.
        path: where the file goes; nothing is left there if the check fails.
        kind: "onnx" (runs in ONNX runtimes) or "torch_export" (a `torch.export` program, see `torch.export.load`).

    Raises:
        UsageError: if packages are missing, the network cannot be written, or the file computes something else.
    """
    check_export(kind)
    check_network(model)
    check_dense(dict(model.named_parameters()))
    path = Path(path)
    if not path.parent.is_dir():
        raise UsageError(f"There is no folder {path.parent} to write {path.name} into.")
    if kind == "onnx":
        _check_types(model, example_inputs)
    device = device_of(model)
    example = mapped(example_inputs, lambda tensor: tensor.to(device))
    # Sizes 0 and 1 would be taken for numbers of the code's own, so two samples at least.
    size = max(2, batch_size_of(example))
    with undisturbed(model), _returns_plainly(model), tempfile.TemporaryDirectory(dir=path.parent) as folder:
        draft = Path(folder) / path.name
        try:
            error = _draft(model, kind, draft, _batch(example, size), _batch(example, size + 1))
            any_batch = True
        except RUN_ERRORS:
            # Code with a fixed batch size is written for that one.
            error = _draft(model, kind, draft, _batch(example, size))
            any_batch = False
        for file in Path(folder).iterdir():
            os.replace(file, path.parent / file.name)
    return Exported(path, any_batch, size, error)


@contextlib.contextmanager
def _returns_plainly(model: nn.Module) -> Iterator[None]:
    """Lets a model that returns a data class return its fields as a dict, which exporters know."""
    original = model.forward

    @functools.wraps(original)  # its signature names the inputs
    def forward(*args: Any, **kwargs: Any) -> Any:
        outputs = original(*args, **kwargs)
        if isinstance(outputs, Mapping) or not dataclasses.is_dataclass(outputs) or isinstance(outputs, type):
            return outputs
        found = {field.name: getattr(outputs, field.name) for field in dataclasses.fields(outputs)}
        return {name: value for name, value in found.items() if value is not None}

    vars(model)["forward"] = forward
    try:
        yield
    finally:
        del vars(model)["forward"]


def _check_types(model: nn.Module, example_inputs: Any) -> None:
    """Raises UsageError for numbers that no runtime can be given to check the file with (bfloat16, 8-bit floats)."""
    for tensor in (*model.parameters(), *model.buffers(), *tensors_in(example_inputs)):
        if tensor.is_floating_point() and tensor.dtype not in _ONNX_FLOATS:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UsageError(
                f"A network in {kind} cannot be checked in ONNX; export a copy in another type: "
                "copy.deepcopy(model).float(), with inputs that are float too."
            )


def _draft(model: nn.Module, kind: str, draft: Path, inputs: Any, others: Any = None) -> float:
    """Writes a file, for any batch size if there are other inputs to try it on; returns the error of its outputs."""
    write, runner = (_write_onnx, _run_onnx) if kind == "onnx" else (_write_program, _run_program)
    arguments, keywords = split_inputs(inputs)
    dynamic_shapes = None
    if others is not None:
        size = batch_size_of(inputs)
        dynamic_shapes = mapped(keywords or arguments, lambda tensor: _dimensions(tensor, size))
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # of deprecations inside the exporters
            write(model, arguments, keywords, draft, dynamic_shapes)
    except RUN_ERRORS as error:
        # What torch makes of an error says how to report it, not what it is.
        first: BaseException = error
        while first.__cause__ is not None:
            first = first.__cause__
        lines = str(first).splitlines() or [type(first).__name__]
        raise UsageError(f"{type(model).__name__} cannot be written as {kind}: {lines[0]}") from error
    return _compare(model, runner(draft), inputs if others is None else others)


def _dimensions(tensor: Tensor, size: int) -> dict[int, Any]:
    return {0: torch.export.Dim("batch")} if tensor.dim() and tensor.shape[0] == size else {}


def _batch(example: Any, size: int) -> Any:
    """Returns inputs of the example's form with another number of samples; floats are other ones each."""
    before = batch_size_of(example)
    generator = torch.Generator().manual_seed(size)

    def resized(tensor: Tensor) -> Tensor:
        if tensor.dim() and tensor.shape[0] == before:
            tensor = tensor[torch.arange(size, device=tensor.device) % before]
        if not tensor.is_floating_point():
            return tensor
        return tensor + torch.randn(tensor.shape, generator=generator).to(tensor)

    return mapped(example, resized)


def _compare(model: nn.Module, run: Runner, inputs: Any) -> float:
    """Returns the largest difference between the network and the file, or raises UsageError."""
    expected = tensors_in(call(model, inputs))
    found = run(inputs)
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in found]:
        raise UsageError("What was written computes something else: outputs of other shapes.")
    errors = [_difference(one, other) for one, other in zip(expected, found, strict=True)]
    error = max(errors, default=0.0)
    # Sums are taken in another order there, which single precision feels, and half precision more.
    is_half = any(tensor.is_floating_point() and tensor.element_size() <= 2 for tensor in expected)
    tolerance = 3e-2 if is_half else 1e-3
    if not error <= tolerance:  # NaN is no smaller than anything
        raise UsageError(f"What was written computes something else: its outputs differ by {error:.2g}.")
    return error


def _difference(one: Tensor, other: Tensor) -> float:
    if not one.numel():
        return 0.0
    one, other = one.detach().double().cpu(), other.detach().double().cpu()
    return float((one - other).abs().max() / one.abs().max().clamp(min=1e-6))


# -- formats -----------------------------------------------------------------------------------------------------------


def _write_program(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: Path, shapes: Any) -> None:
    program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
    torch.export.save(program, path)


def _run_program(path: Path) -> Runner:
    program = torch.export.load(path).module()
    return lambda inputs: tensors_in(call(program, inputs))


def _write_onnx(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: Path, shapes: Any) -> None:
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    torch.onnx.export(
        model,
        args,
        path,
        kwargs=kwargs,
        dynamic_shapes=shapes,
        dynamo=True,
        verbose=False,
        external_data=size > _ONNX_LIMIT,
    )


def _run_onnx(path: Path) -> Runner:
    """Runs a file in ONNX Runtime where that is installed, else in the format's own slow interpreter."""
    if importlib.util.find_spec("onnxruntime"):
        import onnxruntime

        session: Any = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]
    else:
        import onnx.reference

        session = onnx.reference.ReferenceEvaluator(str(path))
        names = session.input_names

    def run(inputs: Any) -> list[Tensor]:
        arguments, keywords = split_inputs(inputs)
        values = [tensor.cpu().numpy() for tensor in tensors_in([*arguments, *keywords.values()])]
        outputs = session.run(None, dict(zip(names, values, strict=True)))
        return [torch.as_tensor(output) for output in outputs]

    return run
