"""The laboratory's controlled English: a benchmark with a known answer, and the experiments on it."""
