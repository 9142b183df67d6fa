"""Which processes make up a run, how they meet, and what they tell each other."""
