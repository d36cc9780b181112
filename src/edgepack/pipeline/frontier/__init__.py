"""One table a model: what to make, what it measured, and the report; `study` runs it."""
