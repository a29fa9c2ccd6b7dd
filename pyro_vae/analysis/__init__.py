"""What a trained pair says of data: encode, generate, impute, denoise, diagnose."""
