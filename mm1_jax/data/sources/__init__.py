"""Sources of Records with random access, `len(source)` and `source[i]`; one file per format."""
