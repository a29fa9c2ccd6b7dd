"""Choices that a user writes, such as ``"IAF(depth=2)"`` or ``own.py:Guide``: parsed, found,
checked, built.
"""
