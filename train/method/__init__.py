"""The paper: the three prompts, the temporal transformer, the loss, and their model."""
