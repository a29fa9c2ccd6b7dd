"""What a user names, such as ``"IAF(depth=2)"`` or ``own.py:Guide``, read, found, checked and
built; part of the ground: it imports nothing of the package but the files at its root.
"""
