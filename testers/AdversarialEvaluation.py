from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pruning import PrunableNetwork, UsageError
from pruning.modules.modes import look
from testers._adversarial_report import compare, curve, draw_curves, draw_examples, rows, worst
from testers._attacks import ATTACKS, EPSILONS, SEED, check_fits, perturbations
from testers._memory import memory_advice
from testers._pixels import OnPixels, Pixels, check_classified, clean_pass

Name = Literal[
    "CarliniWagner",
    "LinfPGD",
    "L1FastGradientAttack",
    "L2DeepFoolAttack",
    "FGSM",
    "DDNAttack",
    "SaltAndPepperNoiseAttack",
    "L2RepeatedAdditiveGaussianNoiseAttack",
    "all",
]
THIS = "this network"
EXAMPLES = 6  # images in the picture of each attack
CHUNK = 128  # images attacked at a time: larger ones hide how far it has come


Example = tuple[Tensor, Tensor, str]  # image, the same as it was changed, title


class Attacked(NamedTuple):
    """A network that takes [0, 1], its images and labels to attack, and its accuracy without attack."""

    name: str
    model: OnPixels
    images: Tensor
    labels: Tensor
    clean: float


class AdversarialEvaluation:
    """Robustness to adversarial images, by foolbox: success and robust accuracy per size of perturbation.

    Attacked are `attack_samples` test images that the network classifies correctly, the first such in one order that
    is the same for every network and seed. Perturbations are measured in pixels from 0 to 1, before the data set's
    normalisation. An image counts as lost at a size if any perturbation up to that size was found that changes its
    class, so success never falls with the size and is 0 at size 0. Robust accuracy is the share of all test images
    still right under attack: clean accuracy times (1 - success rate). Intervals are Wilson's, 95 %, of the draw of
    images; the attacks are lower bounds of what a better one may find.

    Writes adversarial.json (renewed after each attack), adversarial_curves.png and pictures of adversarial images.

    Args:
        attack: which attack, or all of them.
        attack_samples: correctly classified test images to attack.
        epsilons: sizes of perturbation, pixels from 0 to 1, in the attack's own norm (default: a list per norm).
        carlini_steps: optimisation steps of CarliniWagner, 9 times; foolbox's own 10000 take seconds per image on a
            CPU, and find perturbations a few percent smaller.
        against: a run (folder or name), such as the dense one, to attack as well: both in one table and one picture.
    """

    def __init__(
        self,
        *,
        network: PrunableNetwork,
        test_batches: Any,
        load_run: Callable[[str], PrunableNetwork],
        attack: Name = "CarliniWagner",
        attack_samples: int = 1000,
        epsilons: list[float] | None = None,
        carlini_steps: int = 100,
        against: str = "",
        batch_size: int = 512,
    ) -> None:
        for name, value in (("attack_samples", attack_samples), ("carlini_steps", carlini_steps)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1; {value} was given")
        if any(not 0 <= size < float("inf") for size in epsilons or ()):
            raise ValueError(f"epsilons are sizes of perturbation, 0 or more; {epsilons} were given")
        self.attacks = list(ATTACKS) if attack == "all" else [attack]
        self.epsilons = sorted(set(epsilons or ()))
        self.test_batches, self.batch_size = test_batches, batch_size
        self.samples, self.carlini_steps = attack_samples, carlini_steps
        self.networks = {THIS: network}
        if against:
            self.networks[Path(against).name] = load_run(against)
        self.pixels = Pixels(test_batches)
        for one in self.networks.values():
            inputs, labels = check_classified("AdversarialEvaluation", test_batches, one.model)
            check_fits(self.attacks, one.model, inputs, labels)

    def evaluate(self, folder: Any, console: Any) -> dict[str, Any]:
        """Attacks, writes the files, and returns what adversarial.json holds.

        Args:
            folder: of this run, to write into.
            console: shows progress.
        """
        attacked = self._attacked(console)
        report: dict[str, Any] = {
            "epsilons_in": self.pixels.describe(),
            "attack_seed": SEED,
            "carlini_steps": self.carlini_steps,
            "networks": {one.name: self._describe(one) for one in attacked},
            "differences": {},
        }
        for attack in self.attacks:
            for one in attacked:
                found, examples = self._attack(attack, one, console)
                report["networks"][one.name]["attacks"][attack] = found
                console.info(f"{attack}, {one.name}: {worst(found)}")
                which = "" if one is attacked[0] else "_against"
                draw_examples(folder, f"adversarial_{attack}{which}.png", examples)
            compare(report, attack)
            # Attacks take hours: what is known is on disk after each of them.
            folder.write_output("adversarial.json", report)
        draw_curves(folder, report)
        return {"test_accuracy": attacked[0].clean, **report}

    def rows(self, report: dict[str, Any]) -> list[tuple[str, str]]:
        """Returns the lines of the table at the end."""
        return rows(report)

    def _attacked(self, console: Any) -> list[Attacked]:
        models = {name: network.model for name, network in self.networks.items()}
        attacked = []
        for name, right in clean_pass(models, self.test_batches, self.pixels, console.track).items():
            if not right.any():
                raise UsageError(f"{name} classifies no test image correctly; there is nothing to attack.")
            model = OnPixels(models[name], self.pixels)
            images, labels = self._draw(right)
            attacked.append(Attacked(name, model, images, labels, clean=float(right.double().mean())))
        return attacked

    def _draw(self, right: Tensor) -> tuple[Tensor, Tensor]:
        """The first correctly classified samples in the fixed order: (images in [0, 1], labels)."""
        order = torch.randperm(len(right), generator=torch.Generator().manual_seed(SEED))
        in_order = order[right[order]]
        chosen = torch.zeros_like(right)
        chosen[in_order[: self.samples]] = True
        images, labels, start = [], [], 0
        for inputs, targets in self.test_batches:
            here = chosen[start : start + len(targets)].to(inputs.device)
            images.append(self.pixels.of(inputs[here]))
            labels.append(targets[here])
            start += len(targets)
        return torch.cat(images), torch.cat(labels)

    def _describe(self, one: Attacked) -> dict[str, Any]:
        return {
            "clean_accuracy": one.clean,
            "weight_sparsity": self.networks[one.name].weight_sparsity(),
            "attacked": len(one.labels),
            "attacks": {},
        }

    def _attack(self, attack: str, one: Attacked, console: Any) -> tuple[dict[str, Any], list[Example]]:
        """The curve of one attack on one network, and a few images that it changed."""
        kind = ATTACKS[attack]
        size = min(self.batch_size, CHUNK)
        epsilons = self.epsilons or list(EPSILONS[kind.norm])
        chunks = list(zip(one.images.split(size), one.labels.split(size), strict=True))
        needed: list[Tensor] = []
        examples: list[Example] = []
        console.info(f"{attack}: {len(one.labels):,} images, {one.name} ...")
        for images, labels in console.track(chunks, f"{attack}, {one.name}"):
            with memory_advice(f"an attack on {size} images", "batch_size"):
                sizes, changed = perturbations(
                    one.model, kind, images, labels, epsilons=epsilons, carlini_steps=self.carlini_steps
                )
            needed.append(sizes.cpu())
            lost = sizes.isfinite().nonzero().flatten()
            for place in lost[: EXAMPLES - len(examples)].tolist():
                said = int(look(one.model, changed[place : place + 1]).argmax(1))
                title = f"class {int(labels[place])} taken for {said}\n{kind.norm} {float(sizes[place]):.3g}"
                examples.append((images[place].cpu(), changed[place].cpu(), title))
        return curve(kind.norm, torch.cat(needed), epsilons, one.clean), examples
