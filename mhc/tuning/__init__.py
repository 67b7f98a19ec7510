"""Which tree is fastest on this machine: measured costs, replayed text."""
