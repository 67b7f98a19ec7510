"""Trees of draft tokens: their shapes, and how a drafter grows one."""
