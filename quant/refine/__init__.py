"""Stock ggml types under a curvature: the best rounding of one matrix, and which type each tensor gets."""
