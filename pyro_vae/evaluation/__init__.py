"""log p(x), and what is built on it: importance sampling, AIS, BDMC, refinement, comparison."""
