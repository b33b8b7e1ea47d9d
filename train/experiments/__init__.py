"""Many runs: the paper's tables, base to novel."""
