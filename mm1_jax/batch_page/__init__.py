"""HTML pages that show the rows of a batch."""
