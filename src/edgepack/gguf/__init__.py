"""The GGUF container: its types, a reader that trusts nothing, a writer that streams.

It knows bytes and names; what the tensors mean is left to `export`, `quant` and `edge`.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""
