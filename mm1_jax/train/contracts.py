"""Contract checks: traces a training step, without arrays or devices, to check return values.

Experiments can replace the vision encoder, connector, decoder, their layers, the loss and the
optimizer. At each call of such a part, `checked` compares the returned shapes and dtypes with those
that the caller expects. Tracing here runs these checks before any data is read or device is used.
"""

import traceback
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mm1_jax.config import ConstructionError, InstantiableConfig
from mm1_jax.layers.module import ContractError, checked
from mm1_jax.parallel.sharding import tracing_for
from mm1_jax.train.objective import Objective
from mm1_jax.train.optimizers.optimizer import Optimizer
from mm1_jax.train.train_state import abstract_model, first_shapes

# Maximum number of steps at which a learning rate schedule is evaluated.
_MAX_RATES = 1024


def check_step(objective: Objective, optimizer: Optimizer.Config) -> None:
    """Traces a training step.

    Raises:
        ValueError: A part violates its contract, or tracing fails. The message names the config
            field and the class of the part.
    """
    try:
        with tracing_for("cpu"):
            _trace_step(objective, optimizer)
    except ContractError as error:
        cfgs = {
            "model": objective.model,
            "trainer.loss": objective.loss,
            "trainer.optimizer": optimizer,
        }
        fields = _fields_of(error.part, cfgs)
        where = f"{' and '.join(fields)}: " if fields else ""
        raise ValueError(f"{where}{error}") from error
    except ConstructionError:
        raise
    except (TypeError, AttributeError, LookupError, AssertionError) as error:
        raise ValueError(
            f"a training step cannot be traced: {type(error).__name__} at {_location(error)}: "
            f"{str(error).partition(chr(10))[0]}"
        ) from error


def check_learning_rate(optimizer: Optimizer, max_steps: int) -> None:
    """Raises ValueError if a schedule yields a negative or non-finite rate; uses a device."""
    steps = np.unique(np.linspace(0, max_steps - 1, _MAX_RATES).astype(np.int32))
    rates = np.asarray(jax.vmap(optimizer.learning_rate)(jnp.asarray(steps)))
    wrong = ~(np.isfinite(rates) & (rates >= 0))
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(
            f"trainer.optimizer: {type(optimizer).__name__}.learning_rate gives {rates[first]:g} "
            f"for step {steps[first]}, expected a finite number, at least 0"
        )


def _location(error: BaseException) -> str:
    """Returns file and line of the innermost frame outside of installed packages."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename]
    last = (own or frames)[-1]
    return f"{last.filename}:{last.lineno}"


def _trace_step(objective: Objective, optimizer: Any) -> None:
    def make_model(prng_key: jax.Array) -> nnx.Module:
        return objective.model.instantiate(rngs=nnx.Rngs(params=prng_key))

    graphdef, params = abstract_model(make_model)
    made: Optimizer = optimizer.instantiate()
    update = made.update(params)
    before = first_shapes(params, update.first_state)
    weights = update.weights(before)
    jax.eval_shape(objective.loss_function(graphdef), *weights, objective.batch)
    rate = jax.eval_shape(made.learning_rate, before.step)
    checked(made, rate, (), jnp.float32)
    gradient = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), weights[0])
    _, after = jax.eval_shape(update.apply, before, gradient)
    old, new = (
        {
            jax.tree_util.keystr(path): (x.shape, x.dtype)
            for path, x in jax.tree_util.tree_leaves_with_path(opt_state)
        }
        for opt_state in (before.opt_state, after)
    )
    changed = [path for path in [*old, *new] if old.get(path) != new.get(path)]
    if changed:
        raise ContractError(
            type(made),
            f"{type(made).__name__} changes its state in a step: {changed[0]} is "
            f"{_shape_text(old.get(changed[0]))} before and {_shape_text(new.get(changed[0]))} "
            "after it, expected the same shape and dtype",
        )


def _shape_text(leaf: tuple[tuple[int, ...], Any] | None) -> str:
    return "absent" if leaf is None else f"{leaf[1]}{list(leaf[0])}"


def _fields_of(part: type, cfgs: dict[str, InstantiableConfig]) -> list[str]:
    """Returns the paths of config fields that configure objects of this class."""
    found: list[str] = []

    def enter(path: str, value: Any, children: list | None) -> list | None:
        if getattr(value, "klass", None) is part:
            found.append(path)
        return children

    for name, cfg in cfgs.items():
        start = len(found)
        cfg.visit(lambda path, value: None, enter)
        found[start:] = [f"{name}.{path}" if path else name for path in found[start:]]
    return found
