from __future__ import annotations

from models._cifar_resnet import CifarResNet


class ResNet56(CifarResNet):
    """ResNet-56 for CIFAR, its shortcuts free of parameters (He et al., arXiv:1512.03385, section 4.2).

    As in the paper; 853,018 parameters on CIFAR-10.

    Args:
        width_multiplier: factor on every hidden width, above 0.
    """

    def __init__(self, num_classes: int, input_shape: tuple[int, int, int], *, width_multiplier: float = 1.0) -> None:
        super().__init__(num_classes, input_shape, depth=56, width_multiplier=width_multiplier)
