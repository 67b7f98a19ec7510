"""One decode round, and many prompts at once: draft, verify, accept, commit."""
