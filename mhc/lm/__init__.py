"""A language model from nothing: its corpus, its tokenizer, the pocket backbone's weights, and MiniCPM4 made a Llama."""
