"""Trying settings: sweep files of Weights & Biases, run here without an account."""
