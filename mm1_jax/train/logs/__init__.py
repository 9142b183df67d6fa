"""Everything that a run writes for people: metrics, progress, summaries, reports, profiles."""
