"""Foreign file formats, one file each: foreign files -> records of a `RecordKind`."""
