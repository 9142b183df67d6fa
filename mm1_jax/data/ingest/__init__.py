"""What people have on disk -> folders of records: formats, filters, and the conversion itself."""
