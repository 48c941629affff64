"""``teacherfarm demo``: the whole of it in small, once over digits and once over photographs.

Everything is trained, exported, served and learned for real, by the same functions and commands that a user calls.
"""
