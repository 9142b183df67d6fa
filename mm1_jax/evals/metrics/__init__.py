"""How answers are scored against references; a family of metrics a file. NumPy alone."""
