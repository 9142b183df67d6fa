"""Random access to Records by number: `len(source)` and `source[i]`, a file a storage format."""
