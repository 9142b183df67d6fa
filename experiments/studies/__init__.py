"""Studies: each module has `study()`, the design, and `named_configs()` for configs of its own.

Modules in a folder `experiments/studies` of the user count as well.
"""

import os

from mm1_jax.experiment_folders import experiment_folders

__path__ = [os.path.join(folder, "studies") for folder in experiment_folders()]
