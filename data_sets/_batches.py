"""Batches of a data set: the same for the same (seed, epoch, batch), wherever one starts and on whatever device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from data_sets._random import generator
from data_sets._sources import Form, Relabelled, Resident, Streamed, check_dataset, dataset_labels
from data_sets._split import stratified_split
from data_sets._transforms import Normaliser, crop_and_flip, draw
from pruning.errors import UsageError
from pruning.modules.calls import mapped, pair_of

PARTS = ("train", "test", "score")
HELD_OUT = 0.2  # of the training data, for tuning
SHARE = {"at_least": 0, "below": 1, "words": "is a share of the training data, 0 to below 1"}
SPLIT_SEED = 20  # constant: every run that tunes or holds out must hold out the same samples


@dataclass(frozen=True)
class Delivery:
    """How samples are delivered.

    Args:
        batch_size: samples per batch.
        device: where the batches are wanted.
        seed: of order and augmentation.
        shuffled: a new order each epoch; otherwise the order of the data, the same each epoch.
        crop: black pixels around a picture that random crops may reach.
        flip: whether pictures are mirrored with probability 1/2.
        limit: batches per epoch at most; None means all.
    """

    batch_size: int
    device: torch.device
    seed: int = 0
    shuffled: bool = True
    crop: int = 0
    flip: bool = False
    limit: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("batch_size", self.batch_size), ("limit", 1 if self.limit is None else self.limit)):
            if value < 1:
                raise UsageError(f"{name} {value} is too small; at least 1 is needed")


class Batches:
    """(inputs, targets) on the device, batch by batch; the same order for the same (seed, epoch).

    Nothing is dropped; where shuffled samples would leave a last batch of one, it joins the batch before, since batch
    norm cannot train on one sample. The global random generators are neither read nor moved.

    Args:
        source: `Resident` or `Streamed`.
        indices: (n,) the samples of `source` that belong to this part.
        delivery: batch size, device, order, augmentation.
        normalise: what is done to every batch last.
    """

    def __init__(self, source: Resident | Streamed, indices: Tensor, delivery: Delivery, normalise: Normaliser) -> None:
        self.source, self.indices, self.delivery, self.normalise = source, indices, delivery, normalise
        self.bounds = _bounds(len(indices), delivery)
        self.samples = self.bounds[-1][1]  # delivered per epoch

    def __len__(self) -> int:
        return len(self.bounds)

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        return self.epoch(0)

    def epoch(
        self, number: int, start: int = 0, *, step: int = 1, share: tuple[int, int] = (0, 1)
    ) -> Iterator[tuple[Any, Tensor]]:
        """Yields the batches of epoch `number` from batch `start` on, without reading those before.

        Args:
            number: epoch, from 0; without shuffling all epochs are alike.
            start: batches to skip.
            step: 2 yields every other batch, and so on.
            share: (number, count) of the processes that each take a part of every batch; all of them take the whole of
                one that has not two samples for each, since batch norm cannot train on one.
        """
        ways = self.delivery
        number = number if ways.shuffled else 0
        rng, count, device = generator(ways.seed, number), len(self.indices), ways.device
        order = self.indices[torch.randperm(count, generator=rng)] if ways.shuffled else self.indices
        changed = bool(ways.crop or ways.flip)
        draws = draw(count, crop=ways.crop, flip=ways.flip, rng=rng, device=device) if changed else None
        bounds = [_part(*span, *share) for span in self.bounds[start::step]]
        for span, (images, targets) in zip(bounds, self.source.batches(order, bounds, number), strict=True):
            images = mapped(images, lambda tensor: tensor.to(device, non_blocking=True))
            targets = targets.to(device, non_blocking=True)
            if draws is not None:
                images = crop_and_flip(images, draws.part(*span), ways.crop)
            # Several inputs, as keyword arguments, are what the network takes already.
            yield self.normalise(images) if isinstance(images, Tensor) else images, targets

    def close(self) -> None:
        """Ends worker processes, if there are any; they end by themselves with the program."""
        self.source.close()


def _bounds(count: int, delivery: Delivery) -> list[tuple[int, int]]:
    """First and last + 1 position of each batch."""
    edges = [*range(0, count, delivery.batch_size), count]
    if delivery.shuffled and len(edges) > 2 and edges[-1] - edges[-2] == 1:
        del edges[-2]
    return list(zip(edges[:-1], edges[1:], strict=True))[: delivery.limit]


def _part(first: int, last: int, number: int, count: int) -> tuple[int, int]:
    """The `number`-th of `count` nearly equal parts of a span, or the span where it is too short."""
    size = last - first
    return (first, last) if size < 2 * count else (first + size * number // count, first + size * (number + 1) // count)


def make_batches(
    data_set: Any,
    part: str,
    *,
    batch_size: Annotated[int, {"at_least": 1}] = 512,
    device: torch.device | str,
    seed: int = 0,
    tuning: bool = False,
    hold_out: Annotated[float, SHARE] = 0.0,
    augment: bool = True,
    limit: int | None = None,
    workers: Annotated[int | None, {"at_least": 0}] = None,
    random_shuffle_labels: bool = False,
) -> Batches:
    """Makes the batches of one part of a data set.

    Args:
        data_set: has `train()`, `test()`, `input_shape`, `num_classes` and, if it likes, `mean`, `std`, `flip`, `crop`.
        part: "train" (shuffled, augmented), "test" (in order, plain) or "score" (shuffled training data, plain).
        batch_size: samples per batch.
        device: where the batches are wanted.
        seed: of order and augmentation.
        tuning: train on 80 % of the training data and evaluate on the other 20 % instead of the test set.
        hold_out: share of the training data that is not trained on but scored on, the same samples for every seed.
        augment: random flips and crops of training images, as the data set declares them.
        limit: batches per epoch at most.
        workers: processes that load data sets too large for memory.
        random_shuffle_labels: train on labels permuted among the training samples, which tells what a network can learn
            by heart; the test data stay as they are.

    "tuning" and "hold_out" split by class, the same for every seed; "score" is then what is held out. Labels are
    permuted as in Zhang et al. 2017 (arXiv:1611.03530), the same for "train" and "score".

    Raises:
        UsageError: the data set is empty, or its samples or labels are not what it declares.
    """
    if part not in PARTS:
        raise UsageError(f"part '{part}' of a data set; there are {', '.join(PARTS)}")
    device = torch.device(device)
    form = _form(data_set)
    normalise = _normaliser(data_set, form, device)
    augmented = part == "train" and augment
    crop, flip = _declared_augmentation(data_set, form) if augmented else (0, False)
    delivery = Delivery(batch_size, device, seed, part != "test", crop, flip, limit)  # checks before anything is read
    source = _source(data_set, "test" if part == "test" and not tuning else "train", form, device)
    labels = source.class_labels if isinstance(source, Resident) else dataset_labels(source)
    indices = _indices(len(source), labels, part, form) if tuning else torch.arange(len(source))
    if hold_out and part != "test":
        known = None if labels is None else labels.cpu()[indices]
        indices = indices[_split(len(indices), known, hold_out, form)[part == "score"]]
    if part == "test" and limit and limit * batch_size < len(indices):
        # Test data may lie class by class; its first batches would then know a class or two.
        indices = indices[torch.linspace(0, len(indices) - 1, limit * batch_size).round().long()]
    if random_shuffle_labels and part != "test":
        permuted = _permuted(labels, indices, seed, form)
        source = source.relabelled(permuted) if isinstance(source, Resident) else Relabelled(source, permuted)
    if not isinstance(source, Resident):
        source = Streamed(source, form, seed=seed, workers=workers, pinned=device.type == "cuda")
    return Batches(source, indices, delivery, normalise)


def _permuted(labels: Tensor | None, indices: Tensor, seed: int, form: Form) -> Tensor:
    """Returns labels (N,) that are permuted among the samples of a part, and nowhere else."""
    if labels is None:
        raise UsageError(f"{form.name}: --random_shuffle_labels needs class numbers known beforehand (targets)")
    # No epoch has the number -1, so this order is no epoch's.
    order = indices[torch.randperm(len(indices), generator=generator(seed, -1))]
    permuted = labels.clone()
    permuted[indices] = labels[order]
    return permuted


def _form(data_set: Any) -> Form:
    name = type(data_set).__name__
    missing = [field for field in ("input_shape", "num_classes", "train", "test") if not hasattr(data_set, field)]
    if missing:
        raise UsageError(f"data set {name} lacks {', '.join(missing)}")
    return Form(name, tuple(int(size) for size in data_set.input_shape), int(data_set.num_classes))


def _normaliser(data_set: Any, form: Form, device: torch.device) -> Normaliser:
    values: list[Tensor | None] = []
    for field in ("mean", "std"):
        given = getattr(data_set, field, None)
        value = None if given is None else torch.as_tensor(given, dtype=torch.float32).flatten()
        if value is not None and len(value) not in (1, *form.input_shape[:1]):
            channels = form.input_shape[0]
            raise UsageError(f"{form.name}: {field} has {len(value)} values, but an input has {channels} channels")
        values.append(value)
    if values[1] is not None and not bool((values[1] > 0).all()):
        raise UsageError(f"{form.name}: std must be above 0, it is {values[1].tolist()}")
    return Normaliser(values[0], values[1], len(form.input_shape), device)


def _declared_augmentation(data_set: Any, form: Form) -> tuple[int, bool]:
    crop, flip = int(getattr(data_set, "crop", 0)), bool(getattr(data_set, "flip", False))
    if crop < 0:
        raise UsageError(f"{form.name}: crop must be 0 or more pixels, it is {crop}")
    if (crop or flip) and len(form.input_shape) != 3:
        raise UsageError(f"{form.name}: crop and flip need pictures (C, H, W), input_shape is {form.input_shape}")
    return crop, flip


def _source(data_set: Any, which: str, form: Form, device: torch.device) -> Any:
    """The data, a Resident or a Dataset as it came; read once per object: "train" and "score" share it."""
    loaded: dict[tuple[str, torch.device], Any] = getattr(data_set, "_loaded_parts", {})
    key = which, device
    if key not in loaded:
        loaded[key] = _read(data_set, which, form, device)
        with suppress(AttributeError):  # an object that takes no attributes is merely read again
            data_set._loaded_parts = loaded
    return loaded[key]


def _read(data_set: Any, which: str, form: Form, device: torch.device) -> Any:
    data = data_set.train() if which == "train" else data_set.test()
    if isinstance(data, TensorDataset) and len(data.tensors) == 2:
        data = data.tensors
    if isinstance(data, Mapping):
        data = pair_of(data)
    # Not a list of two samples, each of which may be a dict.
    is_pair = isinstance(data, (tuple, list)) and len(data) == 2 and hasattr(data[0], "shape")
    if is_pair or (isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Mapping)):
        return Resident(data[0], data[1], form, device)
    if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        kind = type(data).__name__
        raise UsageError(f"{form.name}.{which}() gave {kind}; expected (images, labels) or a Dataset with a length")
    if len(data) == 0:
        raise UsageError(f"{form.name}: the data set is empty")
    check_dataset(data, form)
    return data


def _indices(count: int, labels: Tensor | None, part: str, form: Form) -> Tensor:
    """The samples of a part when tuning; both parts have at least one."""
    return _split(count, labels, HELD_OUT, form)[part == "test"]


def _split(count: int, labels: Tensor | None, share: float, form: Form) -> tuple[Tensor, Tensor]:
    """The rest, and the share that is held out; both have at least one sample."""
    if count < 2:
        raise UsageError(f"{form.name}: holding out training data needs 2 samples; there is {count}")
    return stratified_split(labels, count, min(count - 1, max(1, round(share * count))), SPLIT_SEED)
