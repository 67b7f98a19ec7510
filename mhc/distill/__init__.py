"""What heads learn from: the target model's own answers, and its features on disk."""
