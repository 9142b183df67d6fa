"""`python -m mm1_jax.launch`: command line -> named config -> run folder -> run."""
