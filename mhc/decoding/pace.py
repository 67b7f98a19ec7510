"""Speculate only while it pays: what rounds gained lately, against plain steps.

A round gains the tokens it emits (by row) less what it cost in plain steps, by the prices that `run.py tune` measured.
Where the recent gain falls below zero, plain steps follow: 8, then 16, ... up to 128, each time until speculation
has been tried again, three rounds of one row or one of several. Everything hangs on the text alone, not on a clock, so that the same text is always
decoded the same way.
"""

from mhc.trees.shapes import Shape, cost_of

SHORTEST, LONGEST = 8, 128  # plain steps of a pause
TRIAL = 3  # rows' rounds that it takes to judge
MEMORY = 0.75  # weight of what was before, in the mean over rounds


class Pace:
    """Decides round by round for a shape with prices; a shape without them always speculates."""

    def __init__(self, shape: Shape):
        self.shape = shape
        self.gain, self.left, self.pause = 0.0, 0, SHORTEST
        self.seen = 0  # rows' rounds since the last pause

    @property
    def watches(self) -> bool:
        """Whether anything can be decided at all."""
        return self.shape.costs is not None and self.shape.level is not None

    def pays(self) -> bool:
        """Whether the next round should speculate."""
        if self.left:
            self.left -= 1
            return False
        return True

    def learn(self, tokens: float, rows: int, nodes: int, levels: int) -> None:
        """A round of `nodes` nodes and `levels` drafted levels has emitted so many `tokens` by row."""
        if not self.watches:
            return
        self.gain = MEMORY * self.gain + (1 - MEMORY) * (tokens - self.cost(rows, nodes, levels))
        self.seen += rows
        if self.seen >= TRIAL and self.gain < 0:
            self.left, self.pause = self.pause, min(2 * self.pause, LONGEST)
            self.gain, self.seen = 0.0, 0
        elif self.seen >= SHORTEST:
            self.pause = SHORTEST  # it has paid for a while

    def cost(self, rows: int, nodes: int, levels: int) -> float:
        """What such a round costs, in plain steps of as many rows. Drafting for more rows grows dearer as verifying
        as many nodes does."""
        costs, growing = self.shape.costs, self.shape.growing
        level = self.shape.level * cost_of(costs, rows * growing) / cost_of(costs, growing)
        return (cost_of(costs, rows * nodes) + level * levels) / cost_of(costs, rows)
