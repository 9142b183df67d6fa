"""Readers of what people have on disk, a file each: foreign files -> records of a `Kind`."""
