from torch import Tensor

from pruning import Batches, PrunableState, WeightCriterion
from pruning.scores import hessian_gradient_products


class GRASP(WeightCriterion):
    """Gradient flow: w (H g), so that what helps the gradient's norm stays (Wang et al. 2020, arXiv:2002.07376).

    The paper removes the largest -w (H g); the score here is its negative, so that high is kept, as everywhere.
    Scores are signed. Needs labelled batches, and two passes over them.

    Args:
        temperature: divides the outputs before the loss, which flattens the softmax (the authors use 200).
    """

    def __init__(self, *, temperature: float = 200.0) -> None:
        if temperature <= 0:
            raise ValueError(f"temperature must be positive; {temperature} was given")
        self.temperature = temperature

    def weight_scores(self, network: PrunableState, batches: Batches) -> dict[str, Tensor]:
        products = hessian_gradient_products(network, batches, temperature=self.temperature)
        scores = {}
        for name, weight in network.weights():
            scores[name] = weight.detach() * products[name]
        return scores
