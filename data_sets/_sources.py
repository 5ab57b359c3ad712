"""Where batches come from: tensors that live on one device, or a map-style Dataset read by worker processes."""

from __future__ import annotations

import copy
import gc
import os
import signal
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from data_sets._random import seeded
from pruning.errors import UsageError
from pruning.modules.calls import mapped, pair_of, tensors_in

RESIDENT_BYTES = 2 * 2**30  # larger tensors stay in main memory and travel batch by batch
LEFT_OUT = -100  # a target that does not count: padding, a pixel without a class
FEW_SAMPLES = 1024  # reading so few costs less than starting workers


class Form(NamedTuple):
    """What the samples of a data set must look like; `name` is for messages."""

    name: str
    input_shape: tuple[int, ...]
    num_classes: int

    def check_shape(self, shape: Sequence[int], where: str) -> None:
        if tuple(shape) != self.input_shape:
            raise UsageError(f"{self.name}: {where} has shape {tuple(shape)}, but input_shape says {self.input_shape}")

    def check_labels(self, labels: Tensor) -> None:
        """Class numbers must lie in 0..num_classes-1; targets that are no integers are for a loss of the user's own.

        Of several in a sample (tokens, pixels) those that are -100 are left out, as everywhere in torch.
        """
        if labels.is_floating_point():
            return
        if labels.dim() > 1:
            labels = labels[labels != LEFT_OUT]
        if labels.numel() == 0:
            return
        low, high = (int(value) for value in torch.aminmax(labels))
        if low < 0 or high >= self.num_classes:
            wrong = low if low < 0 else high
            raise UsageError(f"{self.name}: label {wrong} is outside 0..{self.num_classes - 1}, as num_classes says")

    def check_inputs(self, inputs: Any, where: str) -> None:
        """Checks one sample's inputs: a tensor, or a dict of several, the first of which has the shape declared."""
        tensors = tensors_in(inputs)
        if tensors:
            self.check_shape(tensors[0].shape, where)


class Resident:
    """Images and labels as two tensors, on the device unless they are too large for it.

    Args:
        images: (N, *input_shape), any dtype; bytes stay bytes. Or a dict of keyword arguments, each a tensor (N, ...).
        labels: (N,) class numbers, or targets of any shape (N, ...).
        form: what they must look like.
        device: where batches are wanted.
    """

    def __init__(self, images: Any, labels: Any, form: Form, device: torch.device) -> None:
        images, labels = _as_tensors(images), torch.as_tensor(labels)
        inputs = tensors_in(images)
        for tensor in inputs:
            are_rows = labels.ndim > 0 and tensor.ndim > 0
            if not are_rows or len(tensor) != len(labels):
                shapes = f"{tuple(tensor.shape)} and {tuple(labels.shape)}"
                raise UsageError(f"{form.name}: images and labels differ in number: {shapes}")
        if len(labels) == 0 or not inputs:
            raise UsageError(f"{form.name}: the data set is empty")
        form.check_shape(inputs[0].shape[1:], "an image")
        are_classes = not labels.is_floating_point()
        if are_classes:
            labels = labels.long()
        form.check_labels(labels)
        # What is too large for the device travels batch by batch.
        size = sum(tensor.nbytes for tensor in inputs)
        home = device if size <= _room(device) else torch.device("cpu")
        self.images = mapped(images, lambda tensor: tensor.to(home))
        self.labels = labels.to(home)
        self.class_labels = labels if are_classes and labels.ndim == 1 else None

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, order: Tensor, bounds: Sequence[tuple[int, int]], epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields copies, never views: what a caller does to a batch must not reach the data."""
        order = order.to(self.labels.device)
        for start, stop in bounds:
            chosen = order[start:stop]
            images = mapped(self.images, partial(torch.index_select, dim=0, index=chosen))
            yield images, self.labels.index_select(0, chosen)

    def relabelled(self, labels: Tensor) -> Resident:
        """Returns the same images with other labels, (N,) class numbers."""
        other = copy.copy(self)
        other.labels = labels.to(self.labels.device)
        other.class_labels = labels
        return other

    def close(self) -> None:
        """Nothing runs in the background here."""


def _room(device: torch.device) -> int:
    """Bytes that a data set may take on `device`: on CUDA no more than a quarter of what is free."""
    if device.type != "cuda":
        return RESIDENT_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    return min(RESIDENT_BYTES, free // 4)


class Streamed:
    """A map-style Dataset of (tensor, target), read by worker processes that stay alive between epochs.

    Each sample is read with the random generators seeded from (seed, epoch, index), so random transforms give the same
    pictures whatever the number of workers.

    Args:
        data: has `__len__` and `__getitem__`.
        form: what the samples must look like.
        seed: of random transforms inside `data`.
        workers: processes; None means up to four, none at all for few samples.
        pinned: whether batches go to page-locked memory, from where CUDA copies in the background.
    """

    def __init__(self, data: Any, form: Form, *, seed: int, workers: int | None, pinned: bool) -> None:
        self.seeded = _Seeded(data, form, seed)
        self.plan = _Plan()
        self.pinned = pinned
        self.workers = _default_workers(len(data)) if workers is None else workers
        self.busy = False
        # The loader hangs in a list that also hangs outside: collected as part of a reference cycle, its queues would
        # die before its workers, and each of those would be waited for 5 seconds.
        self.loaders: list[DataLoader] = []
        weakref.finalize(self, self.loaders.clear).atexit = False

    def __len__(self) -> int:
        return len(self.seeded)

    def batches(self, order: Tensor, bounds: Sequence[tuple[int, int]], epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the batches of `order`; a second iteration inside the first reads in this process."""
        plan = [(order[start:stop], epoch) for start, stop in bounds]
        if self.busy:
            # The workers serve the first iteration.
            yield from map(_checked, self._new_loader(_Plan(plan), 0))
            return
        self.busy = True
        self.plan.batches = plan
        try:
            if not self.loaders:
                self.loaders.append(self._new_loader(self.plan, self.workers))
            yield from map(_checked, self.loaders[0])
        finally:
            self.busy = False

    def _new_loader(self, plan: _Plan, workers: int) -> DataLoader:
        return DataLoader(
            self.seeded,
            batch_sampler=plan,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=_Collate(self.seeded.form),
            pin_memory=self.pinned,
            # Plug-ins are loaded from files by path, which only a forked worker knows without pickling.
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # else each epoch would draw from the global one
        )

    def close(self) -> None:
        """Ends the workers; the next epoch would start new ones."""
        self.loaders.clear()


def _start_worker(_number: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle: it ends its workers by itself
    gc.freeze()  # a forked worker must not collect the parent's discarded loaders: that would end the parent's workers


def _default_workers(samples: int) -> int:
    if samples < FEW_SAMPLES:
        return 0
    available = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # fewer than there are, in a container or a worker of experiments
        available = len(os.sched_getaffinity(0))
    return min(4, available)


class _Plan:
    """A batch sampler whose batches are set anew before each epoch: lists of (epoch, index)."""

    def __init__(self, batches: Sequence[tuple[Tensor, int]] = ()) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for chosen, epoch in self.batches:
            yield [(epoch, index) for index in chosen.tolist()]


class _Seeded(Dataset):
    """The user's Dataset with the generators seeded around each sample."""

    def __init__(self, data: Any, form: Form, seed: int) -> None:
        self.data, self.form, self.seed = data, form, seed

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        epoch, index = key
        with seeded(self.seed, epoch, index):
            try:
                return _checked_sample(self.data[index], self.form, index)
            except UsageError as error:
                return error  # raised in a worker it would arrive with the worker's traceback in its message


def _checked_sample(sample: Any, form: Form, index: int) -> tuple[Any, Any]:
    """Returns (inputs, target) of a sample: such a pair, or a dict of keyword arguments with the target as "labels"."""
    if isinstance(sample, Mapping):
        try:
            inputs, target = pair_of(_as_tensors(sample))
        except UsageError as error:
            raise UsageError(f"{form.name}, sample {index}: {error}") from error
    elif isinstance(sample, (tuple, list)) and len(sample) == 2:
        inputs, target = sample
    else:
        raise UsageError(f"{form.name}: sample {index} is {type(sample).__name__}, expected (tensor, label)")
    if isinstance(inputs, Mapping):
        inputs = dict(_as_tensors(inputs))
    elif not isinstance(inputs, Tensor):
        kind = type(inputs).__name__
        raise UsageError(f"{form.name}: sample {index} holds {kind}, expected a tensor (transform=PILToTensor())")
    form.check_inputs(inputs, f"sample {index}")
    return inputs, target


def _as_tensors(inputs: Any) -> Any:
    """Returns an array as a tensor, and a dict of arrays or lists of numbers as one of tensors."""
    if isinstance(inputs, Mapping):
        return {name: torch.as_tensor(value) for name, value in inputs.items()}
    return torch.as_tensor(inputs)


class _Collate:
    """Stacks samples; hands the first error on as a value."""

    def __init__(self, form: Form) -> None:
        self.form = form

    def __call__(self, samples: list[Any]) -> tuple[Tensor, Tensor] | UsageError:
        for sample in samples:
            if isinstance(sample, UsageError):
                return sample
        try:
            images = default_collate([image for image, _ in samples])
            targets = default_collate([label for _, label in samples])
        except RuntimeError as error:
            return UsageError(f"{self.form.name}: samples cannot be stacked, they differ in shape: {error}")
        try:
            self.form.check_labels(targets)
        except UsageError as error:
            return error
        return images, targets if targets.is_floating_point() else targets.long()


def _checked(batch: tuple[Tensor, Tensor] | UsageError) -> tuple[Tensor, Tensor]:
    if isinstance(batch, UsageError):
        # A new one: an error raised from a variable keeps its own frame, and with it the workers, alive.
        raise UsageError(str(batch))
    return batch


class Relabelled(Dataset):
    """A map-style Dataset with other labels: a tensor (N,) of class numbers."""

    def __init__(self, data: Any, labels: Tensor) -> None:
        self.data, self.targets = data, labels

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        image, _ = self.data[index]
        return image, self.targets[index]


def check_dataset(data: Any, form: Form) -> None:
    """Looks at the first sample and at all labels known, so that a wrong data set fails before training starts."""
    first = _Seeded(data, form, 0)[0, 0]
    _checked(_Collate(form)([first]))
    labels = dataset_labels(data)
    if labels is not None:
        form.check_labels(labels)


def dataset_labels(data: Any) -> Tensor | None:
    """The class numbers of a map-style Dataset that knows them without reading samples (torchvision: `targets`)."""
    for name in ("targets", "labels"):
        with suppress(TypeError, ValueError, RuntimeError):
            labels = torch.as_tensor(getattr(data, name, None))
            if labels.shape == (len(data),) and not labels.is_floating_point():
                return labels.long()
    return None
