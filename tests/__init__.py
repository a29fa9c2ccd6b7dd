"""The laws, by wing. What several files share is in `tests.support`."""
