"""The student out, as files that other programs load."""
