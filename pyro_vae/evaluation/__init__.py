"""Estimators of log p(x): importance sampling, AIS, BDMC, refinement, comparison."""
