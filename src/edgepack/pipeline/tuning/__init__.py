"""A quantised GGUF is tuned against the checkpoint that it was made of; what is tuned and how is `quant.tuning`'s."""
