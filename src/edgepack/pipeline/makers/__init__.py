"""One maker a kind of target, with two operations: outline (bytes without work) and make (into a scratch name)."""
