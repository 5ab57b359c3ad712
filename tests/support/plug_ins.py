"""Plug-ins as a user writes them: one of each kind, with a parameter of its own, and some more to prune by."""

# kind -> (its setting, a name, its file, what is typed beside it, a flag that --help must explain)
PLUG_INS = {
    "criterions": (
        "prune_criterion",
        "MyIdea",
        '''
        from pruning import WeightCriterion

        class MyIdea(WeightCriterion):
            """Weights far from alpha (nobody 2024, arXiv:0000.00000).

            Args:
                alpha: value that no weight should have.
            """

            def __init__(self, alpha: float = 0.3):
                self.alpha = alpha

            def weight_scores(self, network, batches):
                return {name: (weight - self.alpha).abs() for name, weight in network.weights()}
        ''',
        ["--alpha", "0.4"],
        r"--alpha FLOAT +value that no weight should have\. \(default: 0\.3\)",
    ),
    "models": (
        "model",
        "MyNet",
        '''
        import math
        from torch import nn

        class MyNet(nn.Module):
            """Two layers.

            Args:
                my_width: units of the hidden layer.
            """

            def __init__(self, num_classes: int, input_shape: tuple[int, int, int], my_width: int = 24):
                super().__init__()
                self.hidden = nn.Linear(math.prod(input_shape), my_width)
                self.last = nn.Linear(my_width, num_classes)

            def forward(self, x):
                return self.last(self.hidden(x.flatten(1)).relu())
        ''',
        ["--my_width", "8"],
        r"--my_width INT +units of the hidden layer\. \(default: 24\)",
    ),
    "data_sets": (
        "data_set",
        "MyData",
        '''
        import torch

        class MyData:
            """Noise in three classes.

            Args:
                count: samples for training.
                size: height and width.
            """

            num_classes = 3

            def __init__(self, count: int = 90, size: tuple[int, int] = (4, 4)):
                self.count, self.input_shape = count, (1, *size)

            def train(self):
                return self._draw(self.count)

            def test(self):
                return self._draw(30)

            def _draw(self, number):
                generator = torch.Generator().manual_seed(number)
                labels = torch.arange(number) % 3
                return torch.rand(number, *self.input_shape, generator=generator) + labels.view(-1, 1, 1, 1), labels
        ''',
        ["--count", "60", "--size", "5", "6"],
        r"--size \[INT \.\.\.\].*\(default: 4 4\)",
    ),
    "losses": (
        "loss",
        "MyLoss",
        '''
        import torch.nn.functional as F

        class MyLoss:
            """Cross-entropy of smoothed labels.

            Args:
                smoothing: share of the target that all classes get.
            """

            def __init__(self, smoothing: float = 0.1):
                self.smoothing = smoothing

            def __call__(self, outputs, targets):
                return F.cross_entropy(outputs, targets, label_smoothing=self.smoothing)
        ''',
        ["--smoothing", "0.2"],
        r"--smoothing FLOAT +share of the target that all classes get\. \(default: 0\.1\)",
    ),
    "trainers": (
        "train_scheme",
        "MyTrainer",
        '''
        from trainers.DefaultTrainer import DefaultTrainer

        class MyTrainer(DefaultTrainer):
            """Trains on a scaled loss.

            Args:
                scale: factor on the loss.
            """

            def __init__(self, *, scale: float = 2.0, **others):
                super().__init__(**others)
                self.scale = scale

            def loss(self, outputs, targets):
                return self.scale * super().loss(outputs, targets)
        ''',
        ["--scale", "3", "--learning_rate", "0.01"],
        r"--scale FLOAT +factor on the loss\. \(default: 2\.0\)",
    ),
    "testers": (
        "test_scheme",
        "MyTester",
        '''
        class MyTester:
            """Counts outputs above a threshold.

            Args:
                threshold: what an output must exceed.
            """

            def __init__(self, network, test_batches, threshold: float = 0.0):
                self.network, self.test_batches, self.threshold = network, test_batches, threshold

            def evaluate(self):
                outputs = self.network.model(next(iter(self.test_batches))[0])
                return {"above": float((outputs > self.threshold).float().mean()), "threshold": self.threshold}
        ''',
        ["--threshold", "0.5"],
        r"--threshold FLOAT +what an output must exceed\. \(default: 0\.0\)",
    ),
}

# More of a kind: (kind, name, file).
MORE = [
    (
        "criterions",
        "MyNodes",
        '''
        import torch

        from pruning import NodeCriterion

        class MyNodes(NodeCriterion):
            """Nodes by the number of their slices, none of which is looked at (nobody 2024, arXiv:0000.00000)."""

            needs_data = False

            def node_scores(self, network, batches):
                ones = {name: torch.ones_like(weight) for name, weight in network.model.named_parameters()}
                return network.graph.reduce_to_nodes(ones, role="producer")
        ''',
    ),
]
