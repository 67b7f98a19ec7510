"""Speculate only while it pays, judged by the gain of recent rounds over plain steps.

Gain of a round = tokens emitted per row minus its measured cost in plain steps, as `run.py tune` measured it.
Where the recent gain falls below zero, plain steps follow: 8, then 16, ... up to 128; after each pause speculation is retried
for TRIAL row-rounds. Decisions depend on the text alone, not on a clock, so that the same text is always decoded the same way.
"""

from mhc.trees.shapes import TreeShape, cost_of

SHORTEST, LONGEST = 8, 128  # plain steps of a pause
TRIAL = 3  # row-rounds needed for a judgement
MEMORY = 0.75  # weight of earlier rounds in the running mean


class Pace:
    """Decides round by round for a shape with measured costs; a shape without them always speculates."""

    def __init__(self, shape: TreeShape):
        self.shape = shape
        self.gain, self.pause_left, self.pause = 0.0, 0, SHORTEST
        self.seen = 0  # row-rounds since the last pause

    @property
    def watches(self) -> bool:
        """Whether there are measured costs to decide by."""
        return self.shape.costs is not None and self.shape.draft_cost is not None

    def pays(self) -> bool:
        """Whether the next round should speculate."""
        if self.pause_left:
            self.pause_left -= 1
            return False
        return True

    def learn(self, tokens: float, rows: int, nodes: int, levels: int) -> None:
        """A round of `nodes` nodes and `levels` drafted levels has emitted `tokens` per row."""
        if not self.watches:
            return
        self.gain = MEMORY * self.gain + (1 - MEMORY) * (tokens - self.cost(rows, nodes, levels))
        self.seen += rows
        if self.seen >= TRIAL and self.gain < 0:
            self.pause_left, self.pause = self.pause, min(2 * self.pause, LONGEST)
            self.gain, self.seen = 0.0, 0
        elif self.seen >= SHORTEST:
            self.pause = SHORTEST  # it has paid for a while

    def cost(self, rows: int, nodes: int, levels: int) -> float:
        """Cost of such a round, in plain steps of as many rows. Drafting cost is taken to grow with rows as verifying that
        many nodes does. Only for a shape that `watches`."""
        costs, draft_cost = self.shape.costs, self.shape.draft_cost
        assert costs is not None and draft_cost is not None
        expanded = self.shape.expanded_per_level
        level = draft_cost * cost_of(costs, rows * expanded) / cost_of(costs, expanded)
        return (cost_of(costs, rows * nodes) + level * levels) / cost_of(costs, rows)
