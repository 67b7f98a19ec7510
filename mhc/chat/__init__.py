"""The terminal chat: the conversation, the line editor's screen and Markdown as it streams."""
