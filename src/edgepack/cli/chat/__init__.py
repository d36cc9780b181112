"""The chat on a terminal, or over a pipe: what is read, what it commands, what is shown."""
