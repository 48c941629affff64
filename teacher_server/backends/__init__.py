"""What runs a teacher, behind one small protocol (backend.py)."""
