"""Stored files → images (rows) → batches."""
