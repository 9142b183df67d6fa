"""Foreign files as streams of bytes, lines, JSON values, members and pictures."""
