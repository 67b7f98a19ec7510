"""Training on several processes: strategies, split weights and whole optimizer states."""
