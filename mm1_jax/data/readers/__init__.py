"""Reads foreign files as streams of bytes, lines, JSON values, archive members and images."""
