"""Studies: arms that differ in one choice, run over seeds, and claims about their differences."""
