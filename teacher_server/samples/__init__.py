"""Data sets that the server has, too: students name crops of them, and the server cuts these itself."""
