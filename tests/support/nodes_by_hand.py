from tests.support.zoo.by_hand import *  # noqa: F403
from tests.support.zoo.by_hand import BY_HAND as NETWORKS  # noqa: F401
