"""What a run would cost before it starts: parameters, memory, time and disk."""
