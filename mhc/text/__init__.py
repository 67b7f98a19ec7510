"""Words to token ids and back: chat templates, loss masks, streamed text."""
