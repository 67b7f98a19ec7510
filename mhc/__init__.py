"""mhc: multi-head-causal drafting for frozen language models, with exactly the text they gave before."""

__version__ = "0.1.0"
