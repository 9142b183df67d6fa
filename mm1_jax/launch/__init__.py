"""`python -m mm1_jax.launch`: a command line -> a named config -> a run folder -> a run."""
