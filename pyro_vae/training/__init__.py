"""`fit`, and all that it needs."""
