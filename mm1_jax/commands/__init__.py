"""Commands that users run as `python -m mm1_jax NAME`, one per file.

Nothing imports them but `mm1_jax.__main__`. A command may import inside functions, so that its
`--help` and errors in its options do not wait for jax.
"""
