from collections.abc import Mapping

from torch import Tensor

from criterions._densities import Distribution, keep_by, random_scores
from pruning import Batches, Budget, Criterion, PrunableState, WeightCriterion, select


class UnstructuredRandom(WeightCriterion):
    """Random weights, an exact number of them: the baseline that every method must beat (arXiv:2009.08576).

    Args:
        seed: of the draw (the run's own seed).
        distribution: "global" draws over all layers together, "uniform" the same share per layer, "erk" in proportion
            to the layer's width (Erdos-Renyi-Kernel, arXiv:1911.11134).
        quotas_of: a weight criterion whose number of weights per layer is taken over; the weights are still random.
    """

    needs_data = False

    def __init__(
        self,
        *,
        seed: int = 333,
        distribution: Distribution = "global",
        quotas_of: Criterion | None = None,
    ) -> None:
        if quotas_of is not None and quotas_of.unit != "weights":
            raise ValueError(f"quotas_of takes a criterion of weights; {type(quotas_of).__name__} removes nodes")
        self.seed = seed
        self.distribution = distribution
        self.quotas_of = quotas_of
        self._model_scores: dict[str, Tensor] = {}
        if quotas_of is not None:
            # The other criterion's layers are those that it would choose, when it would choose them.
            self.needs_data = quotas_of.needs_data
            self.moment = quotas_of.moment
            self.schedule = quotas_of.sparsities
            self.rewind_epoch = quotas_of.rewind_epoch

    def weight_scores(self, network: PrunableState, batches: Batches) -> dict[str, Tensor]:
        if isinstance(self.quotas_of, WeightCriterion):
            scores = self.quotas_of.weight_scores(network, batches)
            self._model_scores = {name: score.detach() for name, score in scores.items()}
            select.check_scores(self._model_scores, network.alive())
        # One order for all events, drawn anew from the seed: a run that was stopped in between goes on with the same.
        return random_scores(network.weights(), self.seed)

    def select(self, scores: Mapping[str, Tensor], budget: Budget) -> dict[str, Tensor]:
        if not isinstance(self.quotas_of, WeightCriterion):
            return keep_by(self.distribution, scores, budget)
        model_scores = {name: self._model_scores[name] for name in budget.alive}
        chosen = self.quotas_of.select(model_scores, budget)
        quotas = {name: int(mask.sum()) for name, mask in chosen.items()}
        return select.keep_top_per_layer(scores, budget, quotas)
