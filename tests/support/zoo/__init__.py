"""All networks that tests share. `NETWORKS` lists them by name: a new one in any file here is met by every test of all.

registry      the table itself, and how a network is called
blocks        what many are made of
plain, joins, groups, moves, norms, sequences, habits    one way of moving channels about each
repositories  as they stand in well-known code, cut down
small         small enough for full Hessians, with data
by_hand       with their nodes written down by a person: `BY_HAND`
"""

from tests.support.zoo import by_hand, groups, habits, joins, moves, norms, plain, repositories, sequences, small
from tests.support.zoo.by_hand import BY_HAND
from tests.support.zoo.registry import NETWORKS

__all__ = ["BY_HAND", "NETWORKS"]
__all__ += ["by_hand", "groups", "habits", "joins", "moves", "norms", "plain", "repositories", "sequences", "small"]
