"""Run folders, configurations, experiments, reports."""
