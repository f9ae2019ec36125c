"""Settings of the recurrent transformer (arXiv 2402.14746) for ``transformers``."""

from transformers import PretrainedConfig


class RecurrentTransformerConfig(PretrainedConfig):
    """Settings in ``config.json``; the modeling file documents their meaning."""

    model_type = "recurrent_transformer"

    def __init__(
        self,
        vocab_size=66,
        hidden_size=64,
        num_attention_heads=4,
        num_hidden_layers=1,
        block=16,
        positions="block",
        max_position_embeddings=None,
        hidden_act="relu",
        history="hidden",
        state_norm=False,
        qk_norm=False,
        alpha_kind="scalar",
        layer_norm_eps=1e-5,
        **others,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_attention_heads = num_attention_heads
        self.num_hidden_layers = num_hidden_layers
        self.block = block
        self.positions = positions
        self.max_position_embeddings = max_position_embeddings
        self.hidden_act = hidden_act
        self.history = history
        self.state_norm = state_norm
        self.qk_norm = qk_norm
        self.alpha_kind = alpha_kind
        self.layer_norm_eps = layer_norm_eps
        super().__init__(**others)
