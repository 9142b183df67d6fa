"""One file per kind of corpus: how its records become documents."""
