"""Config of an MM1 exported by mm1_jax: plain values, one group per part of the model."""

from typing import Any

from transformers import PretrainedConfig


class MM1Config(PretrainedConfig):
    """Sizes and options of vision encoder, connector and decoder.

    `vision_settings` and `connector_settings` are None for a text-only model.
    """

    model_type = "mm1"

    def __init__(
        self,
        vision_settings: dict[str, Any] | None = None,
        connector_settings: dict[str, Any] | None = None,
        decoder_settings: dict[str, Any] | None = None,
        image_token_id: int = 0,
        **kwargs: Any,
    ):
        self.vision_settings = vision_settings
        self.connector_settings = connector_settings
        self.decoder_settings = decoder_settings or {}
        self.image_token_id = image_token_id
        # Under the names that generation and tools of transformers look for.
        decoder = self.decoder_settings
        self.vocab_size = decoder.get("vocab_size")
        self.hidden_size = decoder.get("model_dim")
        self.num_hidden_layers = decoder.get("num_layers")
        self.num_attention_heads = decoder.get("num_heads")
        self.num_key_value_heads = decoder.get("num_kv_heads")
        self.head_dim = decoder.get("head_dim")
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
            kwargs.pop(name, None)
        for name in ("num_key_value_heads", "head_dim"):
            kwargs.pop(name, None)
        # transformers ties nothing: the output layer has its own table, or reads the embedding's
        # in `Decoder.logits`.
        kwargs["tie_word_embeddings"] = False
        super().__init__(**kwargs)
