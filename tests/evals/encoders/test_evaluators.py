"""Evaluators score models that see colors, on one device and on a mesh."""

import jax
import numpy as np
import PIL.Image
import pytest
from picture_sets import COLORS, picture, write_class_folders, write_shards

from mm1_jax.batch import Image
from mm1_jax.data.images import BadImage
from mm1_jax.evals.encoders.attentive_probe import AttentiveProbe
from mm1_jax.evals.encoders.layouts import PictureFiles
from mm1_jax.evals.encoders.linear_probe import LinearProbe, ProbeFeatures
from mm1_jax.evals.encoders.pictures import Preprocessing, Resize
from mm1_jax.evals.encoders.retrieval import Retrieval
from mm1_jax.evals.encoders.zero_shot import ZeroShot
from mm1_jax.parallel.parallelism import Parallelism
from mm1_jax.parallel.sharding import use_mesh


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_class_folders(tmp_path_factory.mktemp("colors"), number=6)


@pytest.fixture(scope="module")
def captions(tmp_path_factory):
    shard = [
        {"png": picture(color, i), "txt": f"a {color} one\nthis is {color}".encode()}
        for i, color in enumerate(COLORS)
    ]
    return write_shards(tmp_path_factory.mktemp("c") / "set", [shard], dataset_type="retrieval")


def data(path):
    return PictureFiles.default_config().set(path=str(path))


@pytest.fixture
def mesh():
    made = Parallelism.default_config().set(data=2, fsdp=2).instantiate()
    return made.mesh(jax.devices()[:4]), made.rules


def test_zero_shot_and_retrieval_find_colors_on_one_device_and_on_a_mesh(
    folders, captions, color_model, encoder_input, mesh
):
    zero_shot = ZeroShot.default_config().set(name="colors", data=data(folders), batch_size=7)
    retrieval = Retrieval.default_config().set(name="pairs", data=data(captions), batch_size=4)
    for cfg, expected in (
        (zero_shot, {"colors/0/acc1": 1.0, "colors/0/mean_per_class_recall": 1.0}),
        (
            retrieval,
            # Recall at k is left out among fewer than k candidates.
            {
                "pairs/0/image_recall@1": 1.0,
                "pairs/0/text_recall@1": 1.0,
                "pairs/0/text_recall@5": 1.0,
            },
        ),
    ):
        evaluator = cfg.instantiate(input=encoder_input)
        assert evaluator.run(color_model).metrics == expected
        assert sorted(evaluator.metric_names()) == sorted(expected)
        with use_mesh(*mesh):
            assert evaluator.run(color_model).metrics == expected


def test_probes_learn_colors_from_random_features_and_from_pixels(
    folders, frozen_model, encoder_input, mesh
):
    common = {"data": data(folders), "batch_size": 8, "validation": 0.2}
    linear = LinearProbe.default_config().set(name="linear", l2s=(1e-3, 1e-1), **common)
    pixels = linear.clone(features=ProbeFeatures.PIXELS)
    attentive = AttentiveProbe.default_config().set(
        name="attentive", num_layers=2, num_epochs=10, learning_rates=(1e-3, 3e-2), **common
    )
    again = attentive.clone(max_gigabytes=1e-9)
    scores = []
    for cfg in (linear, pixels, attentive, again):
        evaluator = cfg.instantiate(input=encoder_input)
        with use_mesh(*mesh):
            scores.append(evaluator.run(frozen_model).metrics)
        assert sorted(evaluator.metric_names()) == sorted(scores[-1])
        assert scores[-1][f"{cfg.name}/0/acc1"] == 1.0
    # Features that are computed again in each epoch are the same.
    assert scores[2] == scores[3]
    with pytest.raises(ValueError, match="validation=0.0 of 18 training pictures is 0"):
        linear.clone(validation=0.0).instantiate(input=encoder_input).run(frozen_model)
    with pytest.raises(ValueError, match="needs a model with encode_image and encode_text"):
        ZeroShot.default_config().set(name="z", data=data(folders)).instantiate(
            input=encoder_input
        ).run(frozen_model)


def test_pictures_that_cannot_be_decoded_are_named_or_left_out(
    tmp_path, color_model, frozen_model, encoder_input
):
    folder = write_class_folders(tmp_path, number=4)
    path = folder / "val" / "dark_red" / "2.png"
    path.write_bytes(path.read_bytes()[:60])
    cfg = ZeroShot.default_config().set(name="colors", data=data(folder))
    with pytest.raises(ValueError, match=f"{path}: cannot be decoded .*allow_bad_pictures"):
        cfg.instantiate(input=encoder_input).run(color_model)
    report = cfg.set(allow_bad_pictures=True).instantiate(input=encoder_input).report(color_model)
    assert report.num_bad == 1 and len(report.right["acc1"]) == 11
    probe = AttentiveProbe.default_config().set(
        name="p", data=data(folder), num_epochs=1, allow_bad_pictures=True, validation=0.5
    )
    for size in (1e-9, 1.0):
        made = probe.clone(max_gigabytes=size).instantiate(input=encoder_input)
        report = made.report(frozen_model)
        assert report.num_bad == 1 and len(report.right["acc1"]) == 11


def test_a_limit_draws_the_same_pictures_every_time(folders, encoder_input):
    cfg = ZeroShot.default_config().set(name="colors", data=data(folders), num_pictures=5)
    first, second = (cfg.instantiate(input=encoder_input) for _ in range(2))
    assert first.fingerprint() == second.fingerprint()
    assert len(first._data.labels) == len(first._data.pictures) == 5


@pytest.mark.parametrize(
    ("size", "fields", "box"),
    [
        # torchvision's Resize and CenterCrop: sides of (8, int(8 * 13 / 9)), offsets rounded to
        # even; then AIM's 256 / 224.
        ((9, 13), {}, ((8, 11), (0, 2))),
        ((13, 9), {}, ((11, 8), (2, 0))),
        ((9, 13), {"crop": 0.875}, ((9, 13), (0, 2))),
        ((9, 13), {"resize": Resize.STRETCH}, ((8, 8), (0, 0))),
    ],
)
def test_pictures_are_resized_and_cropped_as_torchvision_does(size, fields, box):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    (width, height), (left, top) = box
    resized = PIL.Image.fromarray(pixels).resize((width, height), PIL.Image.Resampling.BICUBIC)
    expected = np.asarray(resized)[top : top + 8, left : left + 8]
    made = Preprocessing.default_config().set(**fields).instantiate()
    assert np.array_equal(made(Image(pixels), 8), expected)
    limited = Preprocessing.default_config().set(max_pixels=size[0] * size[1]).instantiate()
    with pytest.raises(BadImage, match="sides are too unequal"):
        limited(Image(np.zeros((1, 100, 3), np.uint8)), 8)
