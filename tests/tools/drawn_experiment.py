"""An experiment whose data is drawn in an instant, for tools that take a config by name."""

from drawn_corpus import input_config

from experiments import pretrain


def drawn():
    cfg = pretrain.mm1_tiny()
    # The sizes of images are the model's.
    cfg.input = input_config(
        image_group_rows=4, images_per_row=3, image_size=None, num_image_tokens=None
    )
    return cfg


def named_configs():
    return {"drawn": drawn}
