"""Foreign files -> folders of records: formats, filters, and the conversion itself."""
