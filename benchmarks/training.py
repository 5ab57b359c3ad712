"""What masks, loading and scoring cost, as ratios measured side by side in one run.

    python benchmarks/training.py [--repeats 7] [--threads N]

Uses MNIST and CIFAR-10 where they lie in gitignored/data, else random pictures of the same shapes (and says so).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from criterions.SNIP import SNIP  # noqa: E402 - the path has to be set first
from criterions.UnstructuredRandom import UnstructuredRandom  # noqa: E402
from data_sets._batches import make_batches  # noqa: E402
from losses.CrossEntropy import CrossEntropy  # noqa: E402
from pruning import PrunableNetwork, UsageError  # noqa: E402
from trainers._optimization import Optimization  # noqa: E402
from trainers.DefaultTrainer import DefaultTrainer  # noqa: E402
from utils.settings import registry  # noqa: E402

SETTINGS = [("MLP5", "MNIST", 512, 20), ("ResNet18", "CIFAR10", 128, 2)]


class RandomPictures:
    """Random pictures in the shapes of a data set, for machines without it."""

    num_classes = 10

    def __init__(self, input_shape: tuple[int, int, int]) -> None:
        self.input_shape = input_shape

    def train(self) -> tuple[torch.Tensor, torch.Tensor]:
        pictures = torch.randint(0, 256, (4096, *self.input_shape), dtype=torch.uint8)
        return pictures, torch.randint(0, 10, (4096,))

    test = train


def data_set(name: str) -> Any:
    """Returns the real data set if its files are there, else random pictures of its shapes."""
    part = registry.find("data_sets", name)
    try:
        found = part(data_dir=str(ROOT / "gitignored" / "data"))
        found.train()
    except UsageError:
        print(f"({name} is not in gitignored/data: random pictures in its shapes)")
        return RandomPictures(part.input_shape)
    return found


def side_by_side(first: Callable[[], Any], second: Callable[[], Any], repeats: int) -> tuple[float, float, float]:
    """Returns median seconds of both, run in turn, and the median of the ratios first / second of each turn."""
    first(), second()
    pairs = [(seconds(first), seconds(second)) for _ in range(repeats)]
    firsts, seconds_ = zip(*pairs, strict=True)
    return statistics.median(firsts), statistics.median(seconds_), statistics.median(a / b for a, b in pairs)


def seconds(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def make_trainer(model: str, data: Any, batch_size: int, device: torch.device) -> DefaultTrainer:
    torch.manual_seed(0)
    options = {"batch_size": batch_size, "device": device, "augment": False}
    batches = make_batches(data, "train", **options)
    network = registry.find("models", model)(num_classes=data.num_classes, input_shape=data.input_shape).to(device)
    trainer = DefaultTrainer(
        network=PrunableNetwork(network, next(iter(batches))[0][:1]),
        loss_function=CrossEntropy(),
        train_batches=batches,
        test_batches=[],
        optimization=Optimization(),
        epochs=1,
    )
    trainer.model.train()
    return trainer


def masks(model: str, name: str, batch_size: int, steps: int, repeats: int, device: torch.device) -> None:
    """Time of a training step with 98 % of the weights masked, against a dense one."""
    data = data_set(name)
    dense, masked = (make_trainer(model, data, batch_size, device) for _ in range(2))
    masked.network.prune(UnstructuredRandom(), sparsity=0.98)
    inputs, targets = next(iter(dense.train_batches))

    def run(trainer: DefaultTrainer) -> Callable[[], None]:
        return lambda: [trainer.train_batch(inputs, targets) for _ in range(steps)] and None

    a, b, ratio = side_by_side(run(masked), run(dense), repeats)
    print(f"step masked / dense, {model} on {name}, batch {batch_size}: {ratio:.3f}", end=" ")
    print(f"({a / steps * 1e3:.1f} ms / {b / steps * 1e3:.1f} ms; aim at most 1.03)")


def loading(repeats: int, device: torch.device) -> None:
    """Samples per second of the resident loader, against a DataLoader with the same transforms."""
    from torchvision import transforms

    data = data_set("MNIST")
    images, labels = data.train()
    resident = make_batches(data, "train", batch_size=512, device=device)
    steps = [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
    plain_set = _Pictures(images[:10000], labels[:10000], transforms.Compose(steps))
    plain = torch.utils.data.DataLoader(plain_set, batch_size=512, shuffle=True)
    a, b, _ = side_by_side(
        lambda: [x.sum() for x, _ in resident.epoch(0)],
        lambda: [x.to(device).sum() for x, _ in plain],
        repeats,
    )
    ours, theirs = resident.samples / a, len(plain_set) / b
    print(f"samples/s resident / DataLoader, MNIST: {ours / theirs:.1f} ({ours:,.0f} / {theirs:,.0f}; aim at least 5)")


class _Pictures(torch.utils.data.Dataset):
    """Pictures one by one, as torchvision's MNIST delivers them: a PIL image through the transforms."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, transform: Callable[[Any], torch.Tensor]) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index, 0].numpy())), int(self.labels[index])


def scoring(model: str, name: str, batch_size: int, repeats: int, device: torch.device) -> None:
    """Time of SNIP's scores, against one forward and backward pass over the same batches."""
    trainer = make_trainer(model, data_set(name), batch_size, device)
    batches = [batch for batch, _ in zip(trainer.train_batches, range(3), strict=False)]
    criterion, module, loss = SNIP(), trainer.network.model.eval(), CrossEntropy()

    def forward_backward() -> None:
        for inputs, targets in batches:
            loss(module(inputs), targets).backward()

    a, b, ratio = side_by_side(lambda: criterion.weight_scores(trainer.network, batches), forward_backward, repeats)
    print(f"SNIP scores / forward-backward, {model} on {name}, batch {batch_size}: {ratio:.3f}", end=" ")
    print(f"({a * 1e3:.0f} ms / {b * 1e3:.0f} ms over {len(batches)} batches; aim at most 1.2)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"torch {torch.__version__}, {device}, {options.threads} threads, medians of {options.repeats} turns")
    for model, name, batch_size, steps in SETTINGS:
        masks(model, name, batch_size, steps, options.repeats, device)
    loading(options.repeats, device)
    for model, name, batch_size, _ in SETTINGS:
        scoring(model, name, batch_size, options.repeats, device)


if __name__ == "__main__":
    main()
