"""One use of a weight on data: shares of its entries in what comes out, and sums over what goes in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pruning.modules.sources import Source, positions_in

aten = torch.ops.aten

TINY = 1.19e-7  # sums up to this count as zero: what they are made of is noise

# Entries of the largest tensor made on the way (positions go through in blocks): what fits a core's cache.
BLOCK = {"cpu": 2**17, "cuda": 2**25}


@dataclass
class Place:
    """Where the entries of a matrix lie in the parameter that it is a part of, or is made from.

    Args:
        parameter: the whole.
        source: how the factor of a product came from it.
        orient: makes of that factor the matrix (outputs, inputs).
    """

    parameter: Tensor
    source: Source
    orient: Callable[[Tensor], Tensor]

    def part_of(self, values: Tensor) -> Tensor:
        """Returns the matrix's entries of values that are shaped like the parameter."""
        return values.reshape(-1)[self.positions(values.device)]

    def gather(self, total: Tensor, values: Tensor, how: Literal["sum", "amax"]) -> None:
        """Puts values of the matrix together with those of the parameter, in place."""
        flat = total.reshape(-1).clone()
        positions = self.positions(total.device).reshape(-1)
        flat.scatter_reduce_(0, positions, values.reshape(-1).to(flat), how)
        total.copy_(flat.view(total.shape))

    def lies_along(self, dim: int) -> bool:
        """Says whether the matrix's columns are the indices of a dimension of the parameter, in their order."""
        columns = torch.unravel_index(self.positions(torch.device("cpu")), self.parameter.shape)[dim]
        width = columns.shape[1]
        return width == self.parameter.shape[dim] and bool((columns == torch.arange(width)).all())

    def positions(self, device: torch.device) -> Tensor:
        """Returns the number of each of the matrix's entries in the parameter."""
        positions = positions_in(self.source, self.parameter)
        assert positions is not None, "places are made for factors whose entries are the parameter's"
        return self.orient(positions).to(device)


class Layer:
    """One use of a weight: what it multiplies, and how.

    Args:
        inputs: (B, C, *positions) of a convolution, (N, C) of a linear layer.
        weight: as the layer multiplies by it.
        how: stride, padding, dilation, transposed, output_padding and groups; None for a linear layer.
        place: where in the parameter the weight's entries lie; None where it is the whole parameter as it stands.
    """

    def __init__(self, inputs: Tensor, weight: Tensor, how: list[Any] | None, place: Place | None = None) -> None:
        self.place = place
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

    # -- the weight within its parameter ---------------------------------------------------------------------------

    def part_of(self, values: Tensor) -> Tensor:
        """Returns of values for the parameter those of this use's weight, in its shape."""
        return values if self.place is None else self.place.part_of(values)

    def add_to(self, total: Tensor, values: Tensor) -> None:
        """Adds values of this use's weight to those of the parameter, in place."""
        if self.place is None:
            total += values
        else:
            self.place.gather(total, values, "sum")

    def raise_to(self, largest: Tensor, values: Tensor) -> None:
        """Raises values of the parameter to those of this use's weight where these are larger, in place."""
        if self.place is None:
            torch.maximum(largest, values, out=largest)
        else:
            self.place.gather(largest, values, "amax")

    def reads(self, dim: int) -> bool:
        """Says whether its inputs are the channels along a dimension of the parameter, all of them, in their order."""
        return self.place is None or self.place.lies_along(dim)

    # -- shares ----------------------------------------------------------------------------------------------------

    def halves(self, weight: Tensor | None = None) -> Iterator[Tensor]:
        """Yields the sizes of the weights of either sign, of the layer's own or of others in the parameter's place."""
        weight = self.weight if weight is None else self.part_of(weight).to(self.weight)
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
