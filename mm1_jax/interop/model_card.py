"""The README.md of an exported model."""

from collections.abc import Mapping

from mm1_jax.config import InstantiableConfig

_LOAD = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}"{trust})
model = AutoModelForCausalLM.from_pretrained("{name}"{trust})
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.batch_decode(model.generate(**inputs, max_new_tokens=32)))
```
"""
_LOAD_WITH_IMAGES = """\
```python
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained("{name}"{trust})
model = AutoModelForImageTextToText.from_pretrained("{name}"{trust})
inputs = processor(
    images=Image.open("picture.png"),
    text="<image>Question: what is this? Short answer:",
    return_tensors="pt",
)
answer = model.generate(**inputs, max_new_tokens=32)[0, inputs["input_ids"].shape[1] :]
print(processor.tokenizer.decode(answer, skip_special_tokens=True))
```

`<image>` marks the place of each image. Prompts of different lengths are padded on the left.
"""
_CHAT = """
Conversations have the format of `chat_template.jinja`:

```python
turns = [{"role": "user", "content": "What is a connector?"}]
inputs = tokenizer.apply_chat_template(
    turns, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)
```
"""
_CHAT_WITH_IMAGES = """
Conversations have the format of `chat_template.jinja`:

```python
content = [{"type": "image", "image": Image.open("picture.png")}]
content.append({"type": "text", "text": "What is this?"})
inputs = processor.apply_chat_template(
    [{"role": "user", "content": content}],
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
)
```
"""
_SPACES = """\
Spaces beside an image are dropped, since text is tokenized apart from the images around it.
"""
_SPACES_OF_LLAVA = """\
Leave no spaces beside an image: text is tokenized apart from the images around it.
"""
_LOAD_TOWER = """\
```python
from transformers import AutoModel

model = AutoModel.from_pretrained("{name}")
features = model(pixel_values).last_hidden_state
```
"""
_LOAD_CLIP = """\
```python
from PIL import Image
from transformers import AutoModel, AutoProcessor

processor = AutoProcessor.from_pretrained("{name}")
model = AutoModel.from_pretrained("{name}")
inputs = processor(
    images=Image.open("picture.png"),
    text=["a cat", "a dog"],
    padding="max_length",
    truncation=True,
    return_tensors="pt",
)
print(model(**inputs).logits_per_image.softmax(-1))
```
"""
_LOAD_OPEN_CLIP = """\
```python
import open_clip

model, preprocess = open_clip.create_model_from_pretrained("local-dir:{name}")
tokenizer = open_clip.get_tokenizer("local-dir:{name}")
```
"""
_LOAD_AIM = """\
```python
from aim.v1.torch.models import aim_600M
from safetensors.torch import load_file

# The model of these sizes; its head is not in the file.
model = aim_600M()
model.load_state_dict(load_file("{name}/model.safetensors"), strict=False)
```
"""


def model_card(
    name: str,
    parts: Mapping[str, InstantiableConfig],
    *,
    library: str | None,
    license: str = "",
    dtype: str = "float32",
    is_chat: bool = False,
) -> str:
    """Returns a model card: the parts of an export, and how to load it.

    Args:
        library: Library that implements the model, such as "transformers"; None if code of ours
            does, which is exported with it.
        license: License of the model; the card omits it if empty.
        is_chat: Whether the export has a chat template.
    """
    has_decoder, has_encoder = "decoder" in parts, "vision_encoder" in parts
    has_text, is_native = "text_encoder" in parts, library is not None
    lines = ["---", f"library_name: {library or 'transformers'}"]
    if license:
        lines.append(f"license: {license}")
    if has_decoder:
        lines.append(f"pipeline_tag: {'image-text-to-text' if has_encoder else 'text-generation'}")
    if has_text:
        lines.append("pipeline_tag: zero-shot-image-classification")
    lines += ["---", "", f"# {name}", "", f"Trained with mm1_jax, exported in {dtype}.", ""]
    lines += ["| part | what it is |", "|---|---|"]
    lines += [f"| {part} | {_describe(cfg)} |" for part, cfg in parts.items()]
    load = _LOAD_WITH_IMAGES if has_encoder else _LOAD
    if not has_decoder:
        load = _LOAD_CLIP if has_text else _LOAD_TOWER
    load = {"open_clip": _LOAD_OPEN_CLIP, "aim": _LOAD_AIM}.get(library or "", load)
    text = load.format(name=name, trust="" if is_native else ", trust_remote_code=True")
    if has_decoder and is_chat:
        text += _CHAT_WITH_IMAGES if has_encoder else _CHAT
    if has_decoder and has_encoder:
        text += _SPACES_OF_LLAVA if is_native else _SPACES
    return "\n".join([*lines, "", text])


def _describe(cfg: InstantiableConfig) -> str:
    names = ("num_layers", "model_dim", "num_heads", "hidden_dim", "image_size", "patch_size")
    names += ("vocab_size", "num_image_tokens")
    values = {name: getattr(cfg, name) for name in names if name in cfg}
    sizes = [f"{name} {value}" for name, value in values.items() if value is not None]
    return f"{cfg.klass.__name__}: {', '.join(sizes)}"
