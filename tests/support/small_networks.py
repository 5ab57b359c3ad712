from tests.support.zoo.small import *  # noqa: F403
