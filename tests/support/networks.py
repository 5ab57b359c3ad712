from tests.support.zoo import NETWORKS  # noqa: F401
from tests.support.zoo.joins import Residual  # noqa: F401
from tests.support.zoo.plain import plain  # noqa: F401
from tests.support.zoo.sequences import Attention  # noqa: F401
