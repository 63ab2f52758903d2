import numpy as np

from bltjax.scaling.fit.hull import frontier


def test_the_frontier_is_the_lower_convex_hull_while_it_falls():
    flops = np.exp([0, 1, 2, 3, 4, 2]).tolist()
    losses = [3.0, 2.5, 2.4, 1.9, 2.2, 2.05]
    # From the first to the fourth point the slope is -.367: the second (2.5 < 2.63) and the last (2.05 < 2.27)
    # lie below that line, the third above; the fifth costs more and is worse.
    assert frontier(flops, losses) == [0, 1, 5, 3]
