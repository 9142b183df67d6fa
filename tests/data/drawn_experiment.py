"""An experiment with small random data, for tools that take a config by name."""

from drawn_corpus import input_config

from experiments import pretrain


def drawn():
    cfg = pretrain.mm1_tiny()
    # Image sizes come from the model.
    cfg.input = input_config(
        image_group_rows=4, images_per_row=3, image_size=None, num_image_tokens=None
    )
    return cfg


def named_configs():
    return {"drawn": drawn}
