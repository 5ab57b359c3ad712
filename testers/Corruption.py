from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pruning import PrunableNetwork, UsageError
from pruning.modules.modes import eval_mode
from testers._corruptions import CORRUPTIONS, SEED, corrupted, draw_corruptions
from testers._pixels import Pixels, check_classified, clean_pass

THIS = "this network"


class Corruption:
    """Accuracy on corrupted test pictures: what pruning costs beyond test accuracy.

    Noise, blur, less contrast and more brightness at five strengths each, after Hendrycks and Dietterich 2019
    (arXiv:1903.12261), in pixels from 0 to 1 before the data set's normalisation. The noise is the same for every
    network. Writes corruption.json, and corruption.png with the curves and a picture at every strength.

    Args:
        against: a run (folder or name), such as the dense one, to test as well.
    """

    def __init__(
        self,
        *,
        network: PrunableNetwork,
        test_batches: Any,
        load_run: Callable[[str], PrunableNetwork],
        against: str = "",
    ) -> None:
        self.models = {THIS: network.model}
        if against:
            self.models[Path(against).name] = load_run(against).model
        self.test_batches, self.pixels = test_batches, Pixels(test_batches)
        for model in self.models.values():
            inputs, _ = check_classified("Corruption", test_batches, model)
        if inputs.ndim != 4 or inputs.shape[1] not in (1, 3):
            raise UsageError(f"Corruption needs pictures, (1 or 3, H, W); inputs are {tuple(inputs.shape[1:])}.")

    def evaluate(self, folder: Any, console: Any) -> dict[str, Any]:
        """Returns clean accuracy, mean corrupted accuracy, and accuracy per corruption and strength."""
        right = clean_pass(self.models, self.test_batches, self.pixels, console.track)
        networks = {name: self._corrupted(name, console) for name in self.models}
        for name, found in networks.items():
            found["clean_accuracy"] = float(right[name].double().mean())
        report = {"unit": self.pixels.describe(), "seed": SEED, "networks": networks}
        folder.write_output("corruption.json", report)
        picture = self.pixels.of(next(iter(self.test_batches))[0][:1])
        draw_corruptions(folder, picture, networks)
        first = networks[THIS]
        return {"test_accuracy": first["clean_accuracy"], "corrupted_accuracy": first["corrupted_accuracy"], **report}

    def rows(self, report: dict[str, Any]) -> list[tuple[str, str]]:
        """Returns the lines of the table at the end."""
        networks = report["networks"]
        rows = [("accuracy of", " against ".join(networks))]
        for what in ("clean_accuracy", "corrupted_accuracy"):
            text = " against ".join(f"{found[what]:.4f}" for found in networks.values())
            rows.append((what.replace("_", " "), text))
        for kind in CORRUPTIONS:
            texts = []
            for found in networks.values():
                shares = [f"{share:.3f}" for share in found["accuracy"][kind]]
                texts.append(" ".join(shares))
            rows.append((f"{kind}, strength 1 to 5", " against ".join(texts)))
        return rows

    def _corrupted(self, name: str, console: Any) -> dict[str, Any]:
        model, samples = self.models[name], 0
        hits: dict[str, Any] = {kind: [0] * len(strengths) for kind, (_, strengths) in CORRUPTIONS.items()}
        with torch.no_grad(), eval_mode(model):
            for number, (inputs, targets) in enumerate(console.track(self.test_batches, f"corruptions, {name}")):
                pictures = self.pixels.of(inputs)
                for kind, strength, changed in corrupted(pictures, number):
                    scores: Tensor = model(self.pixels.normalised(changed))
                    # Left on the device: nothing waits for a number until all are there.
                    hits[kind][strength] = hits[kind][strength] + (scores.argmax(1) == targets).sum()
                samples += len(targets)
        shares, means = {}, []
        for kind, counts in hits.items():
            shares[kind] = [int(count) / samples for count in counts]
            means.append(sum(shares[kind]) / len(counts))
        return {"corrupted_accuracy": sum(means) / len(means), "accuracy": shares}
