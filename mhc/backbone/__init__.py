"""The frozen target model: any Hugging Face causal language model, its tree cache, its attention and its weight layout."""
