"""The student's ends of the wires, behind one small protocol (transport.py)."""
