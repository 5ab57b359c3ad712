from torch import Tensor

from criterions.IterativeSNIP import IterativeSNIP
from pruning import Batches, PrunableState
from pruning.scores import accumulate_gradients, require_signal


class FORCE(IterativeSNIP):
    """Foresight connection sensitivity: weights can come back between steps (de Jorge et al. 2020, arXiv:2006.09081).

    |w dL/dw|, the gradient taken in the network as it is pruned so far and w the weight as it was before. Each step
    chooses among all weights anew; large means that the connection matters to the network that will be left.
    """

    revives = True

    def weight_scores(self, network: PrunableState, batches: Batches) -> dict[str, Tensor]:
        gradients, _ = accumulate_gradients(network, batches, batch_statistics=self.batch_statistics)
        values = {name: network.pre_event_values.get(name, weight).detach() for name, weight in network.weights()}
        return require_signal({name: (value * gradients[name]).abs() for name, value in values.items()})
