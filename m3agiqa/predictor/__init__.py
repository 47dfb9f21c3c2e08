"""The predictor: from the MLLM's hidden states to a mean opinion score (paper, Eq. 6-9)."""
