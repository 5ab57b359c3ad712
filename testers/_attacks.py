"""The attacks of foolbox, run so that a larger perturbation never succeeds less often."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pruning import UsageError
from pruning.modules.modes import eval_mode, plain_recurrence, same_random_state

SEED = 20  # constant: every network meets the same draws


class Attack(NamedTuple):
    """One attack of foolbox.

    Args:
        name: of its class in foolbox.
        norm: in which perturbations are measured.
        gradients: whether it needs the network's gradients.
        minimises: whether it looks for the smallest perturbation, rather than for any of a given size.
    """

    name: str
    norm: str
    gradients: bool = True
    minimises: bool = False


# Quick ones first: their results are there when somebody stops a long evaluation.
ATTACKS = {
    "FGSM": Attack("FGSM", "Linf"),
    "LinfPGD": Attack("LinfPGD", "Linf"),
    "L1FastGradientAttack": Attack("L1FastGradientAttack", "L1"),
    "L2DeepFoolAttack": Attack("L2DeepFoolAttack", "L2", minimises=True),
    "DDNAttack": Attack("DDNAttack", "L2", minimises=True),
    "L2RepeatedAdditiveGaussianNoiseAttack": Attack("L2RepeatedAdditiveGaussianNoiseAttack", "L2", gradients=False),
    "SaltAndPepperNoiseAttack": Attack("SaltAndPepperNoiseAttack", "L2", gradients=False, minimises=True),
    "CarliniWagner": Attack("L2CarliniWagnerAttack", "L2", minimises=True),
}

ORDERS = {"Linf": math.inf, "L2": 2.0, "L1": 1.0}
EPSILONS = {
    "Linf": (0.0, 0.002, 0.004, 0.008, 0.016, 0.03, 0.06, 0.1, 0.2, 0.3),
    "L2": (0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0),
    "L1": (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0),
}


def make(attack: Attack, carlini_steps: int) -> Any:
    """Returns foolbox's object."""
    from foolbox import attacks  # late: it takes a second that every other command would pay for

    if attack.name == "L2CarliniWagnerAttack":
        # Few steps must be longer ones to arrive; from 500 steps on this is foolbox's own step.
        return attacks.L2CarliniWagnerAttack(steps=carlini_steps, stepsize=max(0.01, 5 / carlini_steps))
    return getattr(attacks, attack.name)()


def check_fits(names: Sequence[str], model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Raises a UsageError where foolbox is missing, or an attack needs gradients that the network does not give."""
    if find_spec("foolbox") is None:
        raise UsageError("AdversarialEvaluation needs foolbox: pip install foolbox")
    blind = [name for name in names if ATTACKS[name].gradients]
    if not blind:
        return
    probe = images[:8].clone().requires_grad_()
    with _only_inputs(model):
        outputs = model(probe)
        slope = None
        if outputs.requires_grad:
            # Of the scores, not of the loss: the loss of a network that is sure of itself is flat in 32 bits.
            score = outputs.gather(1, labels[:8, None]).sum()
            slope = torch.autograd.grad(score, probe, allow_unused=True)[0]
    if slope is None or not slope.any():
        free = ", ".join(name for name, attack in ATTACKS.items() if not attack.gradients)
        raise UsageError(f"--attack {blind[0]} follows gradients, and this network has none; without them go {free}.")


def perturbations(
    model: nn.Module, attack: Attack, images: Tensor, labels: Tensor, *, epsilons: Sequence[float], carlini_steps: int
) -> tuple[Tensor, Tensor]:
    """Attacks images that the network classifies correctly.

    An attack of a given size is tried on what the smaller sizes left standing, so success never falls with the size.

    Args:
        model: takes (B, ...) in [0, 1], gives (B, classes).
        attack: one of `ATTACKS`.
        images: (B, ...) in [0, 1].
        labels: (B,) their classes.
        epsilons: sizes to try, in the attack's norm; attacks that minimise do without.
        carlini_steps: optimisation steps of Carlini and Wagner's attack.

    Returns:
        The smallest perturbation (B,) found that changes the class, above 0 and infinite where none was found, and the
        images (B, ...) that it leads to.
    """
    from foolbox import PyTorchModel

    run, found = make(attack, carlini_steps), images.clone()
    needed = torch.full((len(images),), math.inf, device=images.device)
    with _only_inputs(model), same_random_state(images.device):
        torch.manual_seed(SEED)
        target = PyTorchModel(model, bounds=(0, 1), device=images.device)
        for size in (None,) if attack.minimises else sorted({size for size in epsilons if size > 0}):
            left = needed.isinf().nonzero().flatten()
            if not len(left):
                break
            # foolbox returns what the attack found, the same cut to the size, and what it takes for a success.
            changed = run(target, images[left], labels[left], epsilons=size)[1].clamp(0, 1).to(images.dtype)
            sizes = torch.linalg.vector_norm((changed - images[left]).flatten(1), ORDERS[attack.norm], dim=1)
            with torch.no_grad():
                hit = (model(changed).argmax(1) != labels[left]) & (sizes > 0) & sizes.isfinite()
            needed[left[hit]] = sizes[hit] if size is None else size
            found[left[hit]] = changed[hit]
    return needed, found


@contextmanager
def _only_inputs(model: nn.Module) -> Iterator[None]:
    """Eval mode, without gradients of the parameters: nobody asks for them, and they would stay behind."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        with eval_mode(model), plain_recurrence(model), torch.enable_grad():
            yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
