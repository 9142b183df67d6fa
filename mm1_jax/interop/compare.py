"""Checks conversions: compares our outputs with a reference implementation on random inputs.

torch and transformers come with the extra `hf`. If they are not installed, or memory does not
suffice for two copies of the model, the comparison is skipped and the conversion says so.
"""

import importlib
import importlib.util
import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from mm1_jax.batch import Batch
from mm1_jax.config import InstantiableConfig
from mm1_jax.host_memory import available_bytes
from mm1_jax.interop.llama import ARCHITECTURES
from mm1_jax.interop.pickled import PickledTensors
from mm1_jax.interop.tensor_files import TensorFolder, Tensors
from mm1_jax.models.clip import CLIP
from mm1_jax.models.decoder import Decoder
from mm1_jax.models.mm1 import MM1
from mm1_jax.models.vision_encoder import VisionEncoder

# Largest allowed difference in float32, relative to the largest value. Summation order causes 1e-6
# in two layers and a few times that in forty; a tanh in place of an erf causes 1e-4.
BOUND = 2e-5
# Default memory limit of a comparison, and the largest share of free memory that it may use.
DEFAULT_BYTES = 16 * 2**30
_SHARE = 0.8
# Both models run in float32, one after the other; memory holds the reference twice while it loads.
_BYTES_PER_PARAMETER = 8


class Comparison(NamedTuple):
    """The largest difference between two arrays of outputs, and the largest value."""

    what: str
    difference: float
    scale: float

    @property
    def is_good(self) -> bool:
        return bool(np.isfinite(self.scale) and self.difference <= BOUND * self.scale)

    def __str__(self) -> str:
        share = self.difference / self.scale if self.scale else float("inf")
        return (
            f"{self.what}: largest difference {self.difference:.3g} of values up to "
            f"{self.scale:.3g}, {share:.2g} of them; the bound is {BOUND:g}"
        )


def compare(what: str, ours: Any, theirs: Any) -> Comparison:
    ours, theirs = np.asarray(ours, np.float32), np.asarray(theirs, np.float32)
    if ours.shape != theirs.shape:
        raise ValueError(f"{what}: shape {ours.shape} here, {theirs.shape} in transformers")
    return Comparison(what, float(np.abs(ours - theirs).max()), float(np.abs(theirs).max()))


def missing_libraries(*others: str) -> list[str]:
    """Returns which of torch, transformers and `others` are not installed."""
    names = ("torch", "transformers", *others)
    return [name for name in names if importlib.util.find_spec(name) is None]


def random_tokens(vocab_size: int, shape: tuple[int, int] = (2, 48), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocab_size, shape)


def random_images(size: int, count: int = 2, seed: int = 0) -> np.ndarray:
    """Returns noise over slow waves, since images of pure noise look alike to an encoder."""
    generator = np.random.default_rng(seed)
    steps = np.linspace(0, 1, size)
    angles = generator.uniform(-9, 9, (2, count, 1, 1, 3))
    phases = generator.uniform(0, 6, (count, 1, 1, 3))
    waves = np.sin(
        angles[0] * steps[None, :, None, None] + angles[1] * steps[None, None, :, None] + phases
    )
    noise = generator.uniform(-1, 1, waves.shape)
    return np.rint(127.5 + 80 * waves + 40 * noise).clip(0, 255).astype(np.uint8)


class NotComparable(Exception):
    """The reference implementation has no outputs to compare with; the message says why."""


class FolderModel:
    """A model that transformers loads from a folder, with the adapters of a PEFT folder, if any."""

    def __init__(self, folder: Path, adapters: Path | None = None):
        self._folder, self._adapters = folder, adapters

    def config(self, tower: str | None = None) -> Any:
        """Returns the model's config, or the config of its tower of model type `tower`."""
        transformers = _libraries()[1]
        klass = transformers.AutoConfig
        if tower is not None:
            klass = transformers.models.auto.configuration_auto.CONFIG_MAPPING[tower]
        return klass.from_pretrained(self._folder, local_files_only=True)

    def load(self, class_name: str, config: Any) -> Any:
        """Returns the model.

        Raises:
            ValueError: The folder lacks some of the model's weights.
        """
        torch, transformers = _libraries()
        model, info = getattr(transformers, class_name).from_pretrained(
            self._folder, config=config, output_loading_info=True, **_loading_options(torch)
        )
        if missing := _missing_weights(info):
            raise ValueError(f"{self._folder}: transformers finds no {missing[0]} in it")
        return model if self._adapters is None else with_adapters(model, self._adapters)


def with_adapters(model: Any, folder: Path) -> Any:
    """Returns a torch model with the adapters of a PEFT folder.

    Raises:
        ValueError: PEFT finds too few or too many tensors in the folder.
    """
    peft, torch_files = map(importlib.import_module, ("peft", "safetensors.torch"))
    config = peft.PeftConfig.from_pretrained(folder)
    # PEFT warns if it names another folder.
    config.base_model_name_or_path = model.name_or_path
    with warnings.catch_warnings():
        # PEFT reads fields that the newest transformers has renamed.
        warnings.simplefilter("ignore", FutureWarning)
        adapted = peft.get_peft_model(model, config)
    tensors = torch_files.load_file(folder / "adapter_model.safetensors")
    result = peft.set_peft_model_state_dict(adapted, tensors)
    is_adapter = re.compile(r".*\.(?:lora_[AB]|modules_to_save)\..*").fullmatch
    missing = [name for name in result.missing_keys if is_adapter(name)]
    for what, names in (("finds no", missing), ("does not know", result.unexpected_keys)):
        if names:
            raise ValueError(f"{folder}: PEFT {what} {names[0]}")
    return adapted


class StateModel:
    """A checkpoint passed to transformers as a config and a state dict, under names it knows."""

    def __init__(
        self,
        model_type: str,
        fields: Mapping[str, Any],
        tensors: Tensors,
        *,
        prefix: str,
        used: Collection[str],
    ):
        """Stores the arguments; reads no tensor yet.

        Args:
            fields: Fields of the config, except those that change no output.
            prefix: Prefix to remove from tensor names, which transformers does not know.
            used: Names of the tensors that our model reads.
        """
        self._model_type, self._fields, self._tensors = model_type, fields, tensors
        self._prefix, self._used = prefix, used

    def config(self, tower: str | None = None) -> Any:
        """Returns the config.

        Raises:
            NotComparable: transformers rejects its fields.
        """
        transformers = _libraries()[1]
        try:
            return transformers.AutoConfig.for_model(self._model_type, **self._fields)
        except Exception as error:  # Each check raises its own type.
            raise NotComparable(f"transformers refuses the config: {_one_line(error)}") from error

    def load(self, class_name: str, config: Any) -> Any:
        """Returns the model.

        Raises:
            NotComparable: transformers cannot load it, would initialize a weight at random, or
                ignores a tensor that our model reads.
        """
        torch, transformers = _libraries()
        most = getattr(config, "num_hidden_layers", None)
        state = {}
        for name, value in torch_tensors(self._tensors):
            layer = _LAYER.search(name)
            is_read = name in self._used or "text_model." not in name
            if is_read and (layer is None or most is None or int(layer[1]) < most):
                state[name.removeprefix(self._prefix)] = value
        try:
            model, info = getattr(transformers, class_name).from_pretrained(
                None,
                config=config,
                state_dict=state,
                output_loading_info=True,
                **_loading_options(torch),
            )
        except Exception as error:
            raise NotComparable(f"transformers cannot load it: {_one_line(error)}") from error
        if missing := _missing_weights(info):
            raise NotComparable(
                f"transformers lacks {len(missing)} of its parameters, such as {missing[0]}"
            )
        names = {name.removeprefix(self._prefix) for name in self._used}
        if unread := sorted(names.intersection(info["unexpected_keys"])):
            raise NotComparable(f"transformers does not use {unread[0]}")
        return model


# The index of a decoder layer; a comparison may load only the first layers.
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def _missing_weights(info: Mapping[str, Any]) -> list[str]:
    """Returns the missing weights, which transformers draws at random, that outputs depend on."""
    missing = [*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])]
    # The norm of CLIP's class token and SigLIP's head come after the compared features.
    is_behind = re.compile(r".*(?:post_layernorm\.|head\.(?!weight)).*").fullmatch
    return sorted(name for name in missing if not is_behind(name))


def torch_tensors(tensors: Tensors) -> Iterator[tuple[str, Any]]:
    """Yields the tensors of a checkpoint, read by the same libraries that transformers uses."""
    if isinstance(tensors, TensorFolder):
        for path in tensors.paths:
            with importlib.import_module("safetensors").safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118  It is not a mapping.
                    yield name, file.get_tensor(name)
    else:
        assert isinstance(tensors, PickledTensors), tensors
        yield from tensors.tensors.items()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


Reference = FolderModel | StateModel

# Kind of tower -> its model type and class in transformers.
_TOWERS = {
    "clip": ("clip_vision_model", "CLIPVisionModel"),
    "siglip": ("siglip_vision_model", "SiglipVisionModel"),
    "aimv2": ("aimv2_vision_model", "Aimv2VisionModel"),
}


def compare_decoder(
    cfg: Decoder.Config,
    params: Mapping[str, Any],
    theirs: Reference,
    num_rows: int,
    window: int | None = None,
) -> Comparison:
    """Compares the logits of our decoder and of the one in transformers.

    Args:
        params: Parameters by path within the decoder; read one at a time.
        num_rows: Size of the source's vocabulary.
        window: Length of the longest rows in which the source attends to all positions; None for
            no limit.
    """
    torch, _ = _libraries()
    tokens = random_tokens(num_rows)[:, :window]
    ours = decoder_logits(with_params(cfg, params), jnp.asarray(tokens, jnp.int32))
    hf = theirs.config()
    what = "logits of random tokens"
    if cfg.num_layers < hf.num_hidden_layers:
        what += f" after {cfg.num_layers} of {hf.num_hidden_layers} layers"
        hf.num_hidden_layers = cfg.num_layers
        if getattr(hf, "layer_types", None):
            hf.layer_types = hf.layer_types[: cfg.num_layers]
    model = theirs.load(ARCHITECTURES[hf.model_type], hf)
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(tokens)).logits
    return compare(what, ours[..., :num_rows], logits)


def compare_tower(
    cfg: VisionEncoder.Config, params: Mapping[str, Any], theirs: Reference
) -> Comparison:
    """Compares the patch features of our vision tower and of the one in transformers."""
    torch, _ = _libraries()
    images = random_images(cfg.image_size)
    features = jax.jit(lambda encoder, images: encoder(images))
    with jax.default_matmul_precision("highest"):
        ours = features(with_params(cfg, params), jnp.asarray(images))
    kind, class_name = _TOWERS["clip" if cfg.class_token is not None else "siglip"]
    if cfg.patch_norm is not None:
        kind, class_name = _TOWERS["aimv2"]
    hf = theirs.config(kind)
    model = theirs.load(class_name, hf)
    pixels = torch.from_numpy(pixel_values(images, cfg.pixel_mean, cfg.pixel_std))
    with torch.no_grad():
        states = model.eval()(pixels).last_hidden_state
    if cfg.class_token is not None:
        states = states[:, 1:]
    return compare("features of random images", ours, states)


def compare_clip(cfg: CLIP.Config, params: Mapping[str, Any], theirs: Reference) -> Comparison:
    """Compares the features of images and of texts of our CLIP and of the one in transformers."""
    torch, _ = _libraries()
    encoder, text = cfg.vision_encoder, cfg.text_encoder
    hf = theirs.config()
    eos, length = hf.text_config.vocab_size - 1, text.max_length
    lengths = np.array([length, max(1, length // 2)], np.int32)
    tokens = random_tokens(eos, (len(lengths), length)).astype(np.int32)
    places = np.arange(length)[None]
    tokens[places == lengths[:, None] - 1] = eos
    tokens[places >= lengths[:, None]] = min(text.padding_token, eos)
    images = random_images(encoder.image_size)
    with jax.default_matmul_precision("highest"):
        ours = jax.jit(_clip_features)(
            with_params(cfg, params), jnp.asarray(images), jnp.asarray(tokens), jnp.asarray(lengths)
        )
    if hf.model_type == "clip":
        # A text then ends at its highest id.
        hf.text_config.eos_token_id = 2
    model = theirs.load("CLIPModel" if hf.model_type == "clip" else "SiglipModel", hf)
    pixels = torch.from_numpy(pixel_values(images, encoder.pixel_mean, encoder.pixel_std))
    with torch.no_grad():
        output = model.eval()(input_ids=torch.from_numpy(tokens).long(), pixel_values=pixels)
    found = np.concatenate([output.image_embeds, output.text_embeds])
    return compare("features of random images and texts", np.concatenate(ours), found)


def _clip_features(model: CLIP, images: Array, tokens: Array, lengths: Array) -> list[Array]:
    return [model.encode_image(images), model.encode_text(tokens, lengths)]


def compare_llava(
    parts: Mapping[str, Any],
    params: Mapping[str, Any],
    theirs: Reference,
    *,
    num_rows: int,
    image_token: int,
) -> Comparison:
    """Compares the logits of our LLaVA and of the one in transformers, with one image per row."""
    torch, _ = _libraries()
    encoder, per_image = parts["vision_encoder"], parts["connector"].num_image_tokens
    images = random_images(encoder.image_size)
    tokens = random_tokens(num_rows, (len(images), per_image + 24))
    tokens[tokens == image_token] = 0
    tokens[:, 8 : 8 + per_image] = image_token
    cfg = MM1.default_config().set(**parts, image_token=image_token)
    ours = model_logits(with_params(cfg, params), one_document_rows(tokens, images))
    model = theirs.load("LlavaForConditionalGeneration", theirs.config())
    pixels = torch.from_numpy(pixel_values(images, encoder.pixel_mean, encoder.pixel_std))
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.from_numpy(tokens), pixel_values=pixels).logits
    return compare("logits of random tokens and images", ours[..., :num_rows], logits)


def compare_mm1(
    parts: Mapping[str, Any],
    params: Mapping[str, Any],
    folder: Path,
    image_token: int,
    adapters: Path | None = None,
) -> Comparison:
    """Compares the logits of our MM1 and of its export, run by the exported code.

    Args:
        adapters: PEFT folder to load onto the export.
    """
    torch, transformers = _libraries()
    decoder = parts["decoder"]
    tokens = random_tokens(decoder.vocab_size)
    tokens[tokens == image_token] = 0
    inputs, what = {}, "logits of random tokens"
    cfg = MM1.default_config().set(
        **{"vision_encoder": None, "connector": None, **parts}, image_token=image_token
    )
    images = np.zeros((len(tokens), 1, 1, 3), np.uint8)
    if "vision_encoder" in parts:
        encoder, per_image = parts["vision_encoder"], parts["connector"].num_image_tokens
        what += " and images"
        images = random_images(encoder.image_size)
        tokens = random_tokens(decoder.vocab_size, (len(images), per_image + 24))
        tokens[tokens == image_token] = 0
        tokens[:, 8 : 8 + per_image] = image_token
        pixels = pixel_values(images, encoder.pixel_mean, encoder.pixel_std)
        inputs["pixel_values"] = torch.from_numpy(pixels)
    ours = model_logits(with_params(cfg, params), one_document_rows(tokens, images))
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        local_files_only=True,
        trust_remote_code=True,
        output_loading_info=True,
    )
    if missing := _missing_weights(info):
        raise ValueError(f"{folder}: transformers finds no {missing[0]} in it")
    if adapters is not None:
        model = with_adapters(model, adapters)
    with torch.no_grad():
        theirs = model.eval()(input_ids=torch.from_numpy(tokens), **inputs).logits
    return compare(what, ours, theirs)


def one_document_rows(tokens: np.ndarray, images: np.ndarray) -> Batch:
    """Returns a batch with one document per row; row k has image k."""
    tokens = np.asarray(tokens, np.int32)
    places = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    zeros = np.zeros_like(tokens)
    return jax.tree.map(
        jnp.asarray,
        Batch(
            tokens=tokens,
            targets=zeros,
            loss_mask=zeros.astype(bool),
            positions=places,
            segment_ids=zeros + 1,
            corpus_ids=zeros,
            images=images,
            image_index=np.arange(len(tokens), dtype=np.int32)[:, None],
        ),
    )


def model_logits(model: MM1, batch: Batch) -> Float[Array, "B T V"]:
    @jax.jit
    def run(model: MM1, batch: Batch) -> Float[Array, "B T V"]:
        return model.logits(model(batch, dropless=True).hidden)

    with jax.default_matmul_precision("highest"):
        return run(model, batch)


def _libraries() -> tuple[Any, Any]:
    """Returns torch and transformers, the latter without progress bars and warnings."""
    torch, transformers = map(importlib.import_module, ("torch", "transformers"))
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return torch, transformers


def _loading_options(torch: Any) -> dict[str, Any]:
    return {"dtype": torch.float32, "attn_implementation": "eager", "local_files_only": True}


def pixel_values(images: np.ndarray, mean: Any, std: Any) -> np.ndarray:
    """Returns pixels as Hugging Face models expect them: normalized, channels first."""
    pixels = (images.astype(np.float32) / 255 - np.float32(mean)) / np.float32(std)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def with_params(cfg: InstantiableConfig, params: Mapping[str, Any]) -> Any:
    """Returns the module of a config with these parameters (by path), in float32."""
    module = nnx.eval_shape(lambda: cfg.instantiate(rngs=nnx.Rngs(params=0)))
    graphdef, shapes = nnx.split(module)

    def fill(path: tuple, variable: nnx.Variable) -> nnx.Variable:
        value = params["/".join(map(str, path))]
        assert variable.shape == value.shape, (path, variable.shape, value.shape)
        return variable.replace(jnp.asarray(value, jnp.float32))

    return nnx.merge(graphdef, nnx.map_state(fill, shapes))


def decoder_logits(decoder: Decoder, tokens: Int[Array, "B T"]) -> Float[Array, "B T V"]:
    """Returns the logits of rows with one document each; experts drop no tokens."""

    @jax.jit
    def run(decoder: Decoder, tokens: Int[Array, "B T"]) -> Float[Array, "B T V"]:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
        hidden = decoder(
            decoder.embed(tokens),
            positions=positions,
            segment_ids=jnp.ones_like(tokens),
            dropless=True,
        ).hidden
        return decoder.logits(hidden)

    with jax.default_matmul_precision("highest"):
        return run(decoder, tokens)


def too_large(num_parameters: int, max_bytes: int = DEFAULT_BYTES) -> str | None:
    """Returns why a model of this size is not compared; None if memory suffices."""
    needed, available = _BYTES_PER_PARAMETER * num_parameters, available_bytes()
    what = f"it needs {needed / 2**30:.3g} GiB of memory"
    if needed > max_bytes:
        return f"{what}, but --comparison_memory is {max_bytes / 2**30:.3g} GiB"
    if available is not None and needed > _SHARE * available:
        return f"{what}, but {available / 2**30:.3g} GiB are free"
    return None
