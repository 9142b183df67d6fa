import abc

import pytest

from mm1_jax.class_choice import choose_class, default_child, family, owner
from mm1_jax.config import (
    REQUIRED,
    ConfigBase,
    Configurable,
    InstantiableConfig,
    Required,
    config_class,
)
from mm1_jax.data.corpora.digits import DigitsSource
from mm1_jax.layers.norm import RMSNorm
from mm1_jax.models.connectors.c_abstractor import CAbstractor
from mm1_jax.train.trainer import Trainer


class Law(Configurable, abc.ABC):
    @config_class
    class Config(Configurable.Config):
        rate: float = 0.1
        steps: int | None = None

    @abc.abstractmethod
    def value(self, step: int) -> float: ...


class Constant(Law):
    def value(self, step: int) -> float:
        return 1.0


class Linear(Law):
    @config_class
    class Config(Law.Config):
        slope: float = 1.0

    def value(self, step: int) -> float:
        return float(step)


class Power(Linear):
    @config_class
    class Config(Linear.Config):
        # Its type differs from that in the base.
        slope: int = 2
        name: Required[str] = REQUIRED


@config_class
class Plain(ConfigBase):
    number: int = 1


def test_a_narrow_type_accepts_its_class_and_subclasses():
    assert list(family(Law.Config, None)) == ["Constant", "Linear", "Power"]
    assert list(family(Linear.Config | None, None)) == ["Linear", "Power"]


def test_a_broad_type_accepts_relatives_of_the_present_class():
    assert list(family(InstantiableConfig, Constant.default_config())) == [
        *("Constant", "Linear", "Power")
    ]
    connectors = family(InstantiableConfig, CAbstractor.default_config())
    assert list(connectors) == ["AttentionPooling", "AveragePooling", "CAbstractor", "MLP"]
    assert list(family(InstantiableConfig, RMSNorm.default_config())) == ["LayerNorm", "RMSNorm"]
    assert "ParquetSource" in family(InstantiableConfig, DigitsSource.default_config())
    assert family(InstantiableConfig, None) == {}


def test_set_fields_are_kept_if_name_and_type_match():
    present = Linear.default_config().set(steps=5, slope=3.0)
    choice = choose_class("Power", Law.Config, present)
    assert choice.cfg == Power.default_config().set(steps=5)
    assert (choice.kept, choice.dropped) == ({"steps": 5}, {"slope": 3.0})
    assert str(choice) == "keeps steps=5; drops slope=3.0"
    # Unset fields get the default of the new class.
    assert choose_class("Constant", Law.Config, Linear.default_config()).dropped == {}


def test_the_present_class_keeps_everything():
    present = Linear.default_config().set(slope=3.0)
    choice = choose_class("Linear", Law.Config, present)
    assert choice.cfg == present and choice.cfg is not present


def test_another_class_is_an_error_that_lists_the_family():
    for name in ("Linaer", "RMSNorm", "os.system", "Law"):
        with pytest.raises(ValueError, match="can be one of Constant, Linear, Power, and not"):
            choose_class(name, Law.Config, None)
    with pytest.raises(ValueError, match=r"did you mean Linear\?"):
        choose_class("Linaer", Law.Config, None)
    with pytest.raises(ValueError, match="there is no class 'Nothing'"):
        choose_class("Nothing", InstantiableConfig, None)


def test_an_unset_broad_field_accepts_any_imported_class():
    assert choose_class("RMSNorm", InstantiableConfig, None).cfg == RMSNorm.default_config()
    path = "mm1_jax.layers.norm.RMSNorm"
    assert choose_class(path, InstantiableConfig, None).cfg == RMSNorm.default_config()


def test_an_unset_field_starts_with_the_defaults_of_its_class():
    wandb = default_child(Trainer.Config.__annotations__["wandb"], "trainer.wandb")
    assert wandb.klass.__name__ == "WandbRun"
    assert default_child(Linear.Config | None, "law") == Linear.default_config()
    assert default_child(Plain | None, "plain") == Plain()
    with pytest.raises(ValueError, match=r"--config\.law=CLASS, one of Constant, Linear, Power"):
        default_child(Law.Config | None, "law")
    with pytest.raises(ValueError, match=r"law is not set; .* --config\.law=CLASS$"):
        default_child(InstantiableConfig | None, "law")


def test_the_owner_of_a_config_class_is_its_enclosing_class():
    assert owner(Linear.Config) is Linear and owner(Plain) is None
