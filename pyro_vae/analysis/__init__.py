"""Analysis of a trained pair: encode, generate, impute, denoise, diagnose."""
