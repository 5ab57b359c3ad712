"""How much of an output a weight, or a channel, can be: relative contributions, largest over the points of a set S.

For one output value z = sum_j w_j a_j, split by the sign of the products, entry j's share of its own part is
g_j = w_j a_j / sum over the entries of that sign, between 0 and 1. The sensitivity s_j is the largest share met over
the positions of an image and the images of S (SiPP, arXiv:1910.05422; for channels PFP, arXiv:1911.07412). A point
with activations of both signs counts as two, max(a, 0) and max(-a, 0). Biases take no part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pruning.errors import UsageError
from pruning.modules.calls import Batches, call, device_of
from pruning.modules.modes import eval_mode, plain_attention, plain_recurrence, same_random_state
from pruning.scores.gradients import on_device
from pruning.state import PrunableState

aten = torch.ops.aten

TINY = 1.19e-7  # sums up to this count as zero: what they are made of is noise

# Entries of the largest tensor made on the way (positions go through in blocks): what fits a core's cache.
BLOCK = {"cpu": 2**17, "cuda": 2**25}

# Operation -> places of the input and of the transposed weight among its arguments.
_PRODUCTS = {
    aten.mm.default: (0, 1),
    aten.addmm.default: (1, 2),
    aten.bmm.default: (0, 1),
    aten.baddbmm.default: (1, 2),
}


def weight_sensitivities(
    network: PrunableState, batches: Batches, over_positions: Literal["mean", "max"] = "max"
) -> dict[str, Tensor]:
    """Returns the sensitivity of every ranked weight, shaped like it; zero in layers that S does not reach.

    Args:
        network: eval mode, no gradients; nothing in it changes.
        batches: S, pairs (inputs, targets); the targets are not looked at.
        over_positions: what becomes of a convolution's positions; a linear layer's tokens are points of their own.

    Raises:
        UsageError: for activations that are not finite, or a weight that is used otherwise than by Linear and Conv;
            the layer is named.
    """
    found = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in network.weights()}

    def take(name: str, layer: Layer) -> None:
        torch.maximum(found[name], layer.weight_shares(over_positions), out=found[name])

    visit_layers(network, batches, take)
    return found


def channel_sensitivities(
    network: PrunableState, batches: Batches, channel_reduce: Literal["max", "sum"] = "max"
) -> dict[str, Tensor]:
    """Returns the sensitivity of every input channel, (rows, channels / groups) per weight, see `Layer.channels`.

    Args:
        network: as for `weight_sensitivities`.
        batches: S, pairs (inputs, targets).
        channel_reduce: "max" takes the largest share of any one kernel entry, "sum" that of all entries together,
            which is the channel's share of the output.
    """
    found: dict[str, Tensor] = {}

    def take(name: str, layer: Layer) -> None:
        shares = layer.channel_shares(channel_reduce)
        # A layer may be used more than once in a pass.
        if name in found:
            shares = torch.maximum(found[name], shares)
        found[name] = shares

    visit_layers(network, batches, take)
    return found


class Layer:
    """One use of a weight: what it multiplies, and how.

    Args:
        inputs: (B, C, *positions) of a convolution, (N, C) of a linear layer.
        weight: as the layer multiplies by it.
        how: stride, padding, dilation, transposed, output_padding and groups; None for a linear layer.
    """

    def __init__(self, inputs: Tensor, weight: Tensor, how: list[Any] | None) -> None:
        self.inputs, self.count = inputs.float(), len(inputs)
        if bool((self.inputs < 0).any()):
            # A point with both signs counts as two.
            self.inputs = torch.cat([self.inputs.clamp_min(0), (-self.inputs).clamp_min(0)])
        self.weight = weight.float()
        self.how = how or []
        if self.how:
            self.transposed, self.groups = bool(self.how[3]), int(self.how[5])
        else:
            self.transposed, self.groups = False, 1
            # All points side by side, as the positions of one image.
            self.inputs = self.inputs.t()[None]

    def halves(self, weight: Tensor | None = None) -> Iterator[Tensor]:
        """Yields the sizes of the weights of either sign, of the layer's own or of another weight."""
        weight = self.weight if weight is None else weight.to(self.weight)
        yield weight.clamp_min(0)
        yield (-weight).clamp_min(0)

    def weight_shares(self, over_positions: str) -> Tensor:
        """Returns the largest share of each weight, or over the images the largest mean over the positions."""
        ratios = self._largest_ratios
        if over_positions == "mean" and self.how:
            ratios = self._mean_ratios
        shares = [half * ratios(half) for half in self.halves()]
        return torch.stack(shares).amax(0)

    def channel_shares(self, channel_reduce: str) -> Tensor:
        """Returns (groups, channels / groups): the largest share of each input channel in any output."""
        if channel_reduce == "max" or not self.how:
            shares = self.by_group(self.weight_shares("max"))
            if shares.dim() > 3:
                shares = shares.flatten(3).amax(3)
            return shares.amax(1)
        sums = [self._largest_sums(half) for half in self.halves()]
        return torch.stack(sums).amax(0)

    def by_group(self, values: Tensor) -> Tensor:
        """Returns values shaped like the weight as (groups, outputs / groups, channels / groups, *kernel)."""
        split = values.view(self.groups, -1, *values.shape[1:])
        return split.transpose(1, 2) if self.transposed else split

    def from_groups(self, values: Tensor) -> Tensor:
        """Returns the inverse of `by_group`."""
        if self.transposed:
            values = values.transpose(1, 2)
        return values.reshape(self.weight.shape)

    def signed_inputs(self) -> Tensor:
        """Returns the inputs as they came: (B, C, *positions) of a convolution, (N, C) of a linear layer."""
        inputs = self.inputs if self.how else self.inputs[0].t()
        positive, *negative = inputs.split(self.count)
        return positive - negative[0] if negative else positive

    def signed_entries(self) -> Iterator[Tensor]:
        """Yields what each kernel entry meets, image by image: (groups, channels / groups, kernel, positions).

        Points of a linear layer are the positions of one image.
        """
        inputs, kernel = self.signed_inputs(), self.weight.shape[2:].numel()
        images = inputs.split(1) if self.how else [inputs.t()[None]]
        for image in images:
            entries = self._entries(image)
            yield entries.view(self.groups, -1, kernel, entries.shape[-1])

    def input_squares(self) -> Tensor:
        """Returns the sum over points and positions of the square of what each weight meets, shaped like the weight."""
        squares = self.inputs.square()
        if not self.how:
            return squares.sum((0, 2)).expand(self.weight.shape)
        # A convolution's weight gets this sum as its gradient if every output's is 1.
        ones = torch.ones_like(self._sums(squares, self.weight))
        return aten.convolution_backward(ones, squares, self.weight, None, *self.how, [False, True, False])[1]

    def sums(self, half: Tensor) -> Tensor:
        """Returns what the outputs of all points would be with this weight and no bias."""
        return self._sums(self.inputs, half)

    def _sums(self, images: Tensor, half: Tensor) -> Tensor:
        if not self.how:
            return half @ images
        return aten.convolution(images, half, None, *self.how)

    def _inverse_sums(self, image: Tensor, half: Tensor) -> Tensor:
        """Returns 1 / z per output and position of one image, 0 where z is zero: (1, outputs, *positions)."""
        sums = self._sums(image, half)
        return torch.where(sums > TINY, 1 / sums, 0)

    def _mean_ratios(self, half: Tensor) -> Tensor:
        """Largest over the images of the mean of a / z over the positions: one matrix product per image.

        That product is the one by which a convolution's weight gets its gradient, 1 / z being the output's.
        """
        best = torch.zeros_like(half)
        for image in self.inputs.split(1):
            inverse = self._inverse_sums(image, half)
            total = aten.convolution_backward(inverse, image, half, None, *self.how, [False, True, False])[1]
            best = torch.maximum(best, total / inverse[0, 0].numel())
        return best

    def _largest_ratios(self, half: Tensor) -> Tensor:
        """Largest a / z of each weight over images and positions."""
        grouped = self.by_group(half).flatten(2)  # (groups, outputs, entries)
        best = torch.zeros_like(grouped)
        for image in self.inputs.split(1):
            entries = self._entries(image)
            inverse = self._inverse_sums(image, half).view(self.groups, grouped.shape[1], -1)
            _take_largest_products(best, entries, inverse)
        return self.from_groups(best.view(self.by_group(half).shape))

    def _entries(self, image: Tensor) -> Tensor:
        """Returns what each kernel entry meets at each position of one image: (groups, entries, positions)."""
        if not self.how:
            return image
        kernel = self.weight.shape[2:]
        # A convolution by each unit kernel copies, whatever stride, padding and dilation are.
        units = torch.eye(kernel.numel(), device=image.device).view(-1, 1, *kernel)
        if self.transposed:
            units = units.transpose(0, 1)
        copies = aten.convolution(image.transpose(0, 1), units, None, *self.how[:5], 1)
        return copies.reshape(self.groups, -1, copies[0, 0].numel())

    def _largest_sums(self, half: Tensor) -> Tensor:
        """Largest share of a channel with all its kernel entries: (groups, channels / groups)."""
        grouped = self.by_group(half).flatten(3)  # (groups, outputs, channels, kernel)
        groups, outputs, channels, kernel = grouped.shape
        best = grouped.new_zeros(groups, channels)
        for image in self.inputs.split(1):
            inverse = self._inverse_sums(image, half).view(groups, outputs, -1)
            entries = self._entries(image).view(groups, channels, kernel, -1)
            many = max(1, _block(image) // max(1, groups * outputs * channels))  # positions of a block
            for begin in range(0, entries.shape[3], many):
                here = slice(begin, begin + many)
                sums = torch.einsum("gock,gckp->gocp", grouped, entries[..., here])
                shares = sums * inverse[:, :, None, here]
                best = torch.maximum(best, shares.amax(3).amax(1))
        return best


def _block(like: Tensor) -> int:
    return BLOCK.get(like.device.type, BLOCK["cpu"])


def _take_largest_products(best: Tensor, entries: Tensor, inverse: Tensor) -> None:
    """Raises best[g, o, j] to the largest entries[g, j, p] * inverse[g, o, p] over p, in blocks."""
    groups, width, positions = entries.shape
    many = max(1, _block(best) // max(1, groups * width))  # positions of a block
    rows = max(1, many // max(1, positions))  # outputs of a block
    for begin in range(0, positions, many):
        block = slice(begin, begin + many)
        part, factors = entries[:, None, :, block], inverse[:, :, None, block]
        for at in range(0, best.shape[1], rows):
            here = best[:, at : at + rows]
            products = part * factors[:, at : at + rows]
            torch.maximum(here, products.amax(3), out=here)


# -- the pass over S -------------------------------------------------------------------------------------------------


@torch.no_grad()
def visit_layers(network: PrunableState, batches: Batches, take: Callable[[str, Layer], None]) -> None:
    """Runs the network over the batches and hands on each product by a ranked weight, in eval mode.

    It watches operations, not modules, so attention that reads a layer's weight without calling it is seen too.
    """
    model = network.model
    with eval_mode(model), same_random_state(device_of(model)), plain_attention(), plain_recurrence(model), _exact():
        watch = _Watch(network, take)
        with watch.layers():
            for inputs, _ in on_device(batches, model):
                with watch:
                    call(model, inputs)


@contextmanager
def _exact() -> Iterator[None]:
    """Full single precision: tensor cores would round what is only to be copied."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


class _Watch(TorchDispatchMode):
    """Hands on the inputs of every product by a ranked weight.

    Args:
        network: its ranked weights are watched.
        take: gets the weight's name and the use.
    """

    def __init__(self, network: PrunableState, take: Callable[[str, Layer], None]) -> None:
        super().__init__()
        self.take, self.model = take, network.model
        self.weights = dict(network.weights())
        self.storages = {weight.untyped_storage()._cdata: name for name, weight in self.weights.items()}
        self.paths = {path: name for name, path in network.owners().items() if name in self.weights}
        self.running: list[str] = []  # of weights that are computed from others (weight norm) only the layer is known

    @contextmanager
    def layers(self) -> Iterator[None]:
        """Keeps note of the layer that is running."""
        hooks = []
        try:
            for path, name in self.paths.items():
                module = self.model.get_submodule(path)
                hooks.append(module.register_forward_pre_hook(self._begins(name)))
                hooks.append(module.register_forward_hook(self._ends))
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _begins(self, name: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, inputs: self.running.append(name)

    def _ends(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.running.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _PRODUCTS:
            first, second = _PRODUCTS[func]
            self._product(args[first], args[second])
        elif func is aten.convolution.default:
            name = self._name_of(args[1])
            if name is not None:
                self._hand_on(name, args[0], args[1], list(args[3:9]))
        return func(*args, **(kwargs or {}))

    def _product(self, inputs: Tensor, second: Tensor) -> None:
        name = self._name_of(second)
        if name is None:
            # A weight on the left is no Linear's; what it multiplies is no row of inputs.
            on_the_left = self._name_of(inputs)
            if on_the_left is not None:
                self._refuse(on_the_left)
            return
        if second.dim() == 3:  # the same for each of a batch, or none of ours
            second = second[0]
        weight, used = self.weights[name], second.t()
        # Of the weight's own memory only the whole of it is a Linear's use; a computed weight has memory of its own.
        is_own = used.untyped_storage()._cdata in self.storages
        aligned = not is_own or used.stride() == weight.stride()
        if used.shape != weight.shape or not aligned:
            self._refuse(name)
        self._hand_on(name, inputs.reshape(-1, inputs.shape[-1]), used, None)

    def _name_of(self, weight: Tensor) -> str | None:
        """Returns which ranked weight a tensor is, or is computed from; None for no such."""
        name = self.storages.get(weight.untyped_storage()._cdata)
        if name is not None or not self.running:
            return name
        layer = self.running[-1]
        return layer if weight.numel() == self.weights[layer].numel() else None

    def _hand_on(self, name: str, inputs: Tensor, weight: Tensor, how: list[Any] | None) -> None:
        if not bool(torch.isfinite(inputs).all()):
            raise UsageError(f"The activations that reach layer {name!r} are not finite (NaN or infinite).")
        self.take(name, Layer(inputs, weight, how))

    def _refuse(self, name: str) -> None:
        raise UsageError(f"The weight {name!r} is not used as by a Linear or Conv layer; its sensitivity is unknown.")
