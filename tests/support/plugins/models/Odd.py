import torch
from torch import Tensor, nn


class Odd(nn.Module):
    """A perceptron with everything that sharing out a batch might stumble over."""

    def __init__(self, *, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.start = nn.Linear(64, 40)
        self.turn = nn.Parameter(torch.randn(40, 40, dtype=torch.complex64) / 10)
        self.twins = nn.ModuleList([nn.Linear(40, 40), nn.Linear(40, 40)])
        self.twins[1].weight = self.twins[0].weight
        self.frozen = nn.Linear(40, 40).requires_grad_(False)
        self.idle = nn.Linear(40, 40)  # no batch passes it, but a penalty counts it
        self.end = nn.Linear(40, num_classes)
        self.register_buffer("calls", torch.zeros(2, dtype=torch.int16))
        self.register_buffer("flags", torch.ones(3, dtype=torch.bool))
        self.register_buffer("phase", torch.ones((), dtype=torch.complex128))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        x = (self.start(x.flatten(1)).relu().to(self.turn.dtype) @ self.turn).abs()
        for layer in (*self.twins, self.frozen):
            x = layer(x).relu()
        return self.end(x)
