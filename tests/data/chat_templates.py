"""Folders of Hugging Face tokenizers with chat templates in the style of published models."""

import json
from pathlib import Path

import tokenizers

# Splits words, numbers and line breaks as Qwen2 and Llama 3 do.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHATML = """\
{%- if messages[0].role != 'system' -%}
    {{- '<|im_start|>system\\nYou reply.<|im_end|>\\n' -}}
{%- endif -%}
{%- for m in messages -%}
    {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
VISION = """\
{%- for m in messages -%}
    {{- '<|im_start|>' + m.role + '\\n' -}}
    {%- if m.content is string -%}{{- m.content -}}
    {%- else -%}
        {%- for part in m.content -%}
            {%- if part.type == 'image' -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
            {%- else -%}{{- part.text -}}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
LLAMA_3 = """\
{{- bos_token -}}
{%- for m in messages -%}
    {{- '<|header|>' + m['role'] + '<|/header|>\\n\\n' + m['content'] | trim + '<|eot|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|header|>assistant<|/header|>\\n\\n' -}}{%- endif -%}
"""
VICUNA = """\
{%- for m in messages -%}
    {%- if m.role == 'system' -%}{{- m.content + ' ' -}}
    {%- elif m.role == 'user' -%}{{- 'USER: ' + m.content + ' ' -}}
    {%- else -%}{{- 'ASSISTANT: ' + m.content + eos_token -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}
"""
INSTRUCT = """\
{{- bos_token -}}
{%- for m in messages -%}
    {%- if m.role == 'system' -%}{{- raise_exception('no system turn') -}}{%- endif -%}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}
        {{- raise_exception('roles must alternate') -}}
    {%- endif -%}
    {%- if m.role == 'user' -%}{{- '[INST] ' + m.content + ' [/INST]' -}}
    {%- else -%}{% generation %}{{- ' ' + m.content + ' ' + eos_token -}}{% endgeneration %}
    {%- endif -%}
{%- endfor -%}
"""
# `<|end|>` and the names of roles drop the whitespace after them.
SWALLOWING = """\
{%- for m in messages -%}
    {{- '<|' + m.role + '|>\\n' + m.content + '<|turn_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}
"""
PICTURES_FIRST = """\
{%- for m in messages -%}
    {{- m.role.upper() + ': ' -}}
    {%- if m.content is string -%}{{- m.content -}}
    {%- else -%}
        {%- for part in m.content if part.type == 'image' -%}{{- '<image>\\n' -}}{%- endfor -%}
        {%- for part in m.content if part.type == 'text' -%}{{- part.text -}}{%- endfor -%}
    {%- endif -%}
    {{- eos_token if m.role == 'assistant' else ' ' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}
"""
TEMPLATES = {
    "chatml": CHATML,
    "vision": VISION,
    "llama_3": LLAMA_3,
    "vicuna": VICUNA,
    "instruct": INSTRUCT,
    "swallowing": SWALLOWING,
    "pictures_first": PICTURES_FIRST,
}
BOS, EOS = "<|begin|>", "<|end|>"
_SPECIAL = (
    *(BOS, EOS, "<|pad|>", "<|im_start|>", "<|im_end|>", "<|header|>", "<|/header|>", "<|eot|>"),
    *("<image>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"),
)
_SWALLOWING = ("<|user|>", "<|assistant|>", "<|system|>", "<|turn_end|>")


def write_tokenizer(folder: Path) -> Path:
    """Writes a byte-level tokenizer with the special tokens of all templates."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(_WORDS), "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=340,
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    words = ["USER: two red circles\n\n and a square. ASSISTANT: user\n", "system\nassistant\n"]
    tokenizer.train_from_iterator(words * 4, trainer)
    tokenizer.add_special_tokens(
        [
            *(tokenizers.AddedToken(name, special=True, normalized=False) for name in _SPECIAL),
            *(
                tokenizers.AddedToken(name, special=True, normalized=False, rstrip=True)
                for name in _SWALLOWING
            ),
        ]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": BOS, "eos_token": EOS, "pad_token": "<|pad|>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def write_template(folder: Path, template: str) -> Path:
    """Writes a folder of a tokenizer with a chat template."""
    write_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(template)
    return folder
