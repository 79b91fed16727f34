"""Models of transformers that read and write text: class, configuration, batch, settings, and at most how many modules."""

from __future__ import annotations

from typing import Any

from .batches import VOCABULARY, pairs, tokens
from .sizes import (
    BART_SIZES,
    EXPERTS,
    GROUPED,
    LATENT,
    MAMBA_HEADS,
    N_EMBD,
    SIZES,
    STATES,
    T5_SIZES,
    WIDTH,
)  # fmt: skip

Rows = list[tuple[Any, ...]]

_CONV = {"q_groups": 2, "k_groups": 2, "v_groups": 2, "intermediate_groups": 2, "output_groups": 2}
_DISENTANGLED = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
_MAMBA_OF_JAMBA = {"use_mamba_kernels": False, "mamba_d_state": 4, "mamba_expand": 2, "mamba_dt_rank": 4}

DECODERS: Rows = [
    ("GPT2LMHeadModel", "GPT2Config", tokens, SIZES | {"n_inner": 32}),
    ("GPTNeoXForCausalLM", "GPTNeoXConfig", tokens, SIZES),
    ("GPTJForCausalLM", "GPTJConfig", tokens, N_EMBD | {"rotary_dim": 4}),
    ("GPTNeoForCausalLM", "GPTNeoConfig", tokens, SIZES | {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]}),
    ("GPTBigCodeForCausalLM", "GPTBigCodeConfig", tokens, SIZES | {"n_inner": 32}),
    ("OpenAIGPTLMHeadModel", "OpenAIGPTConfig", tokens, N_EMBD),
    ("CodeGenForCausalLM", "CodeGenConfig", tokens, N_EMBD | {"n_head": 4, "rotary_dim": 4}),
    ("CTRLLMHeadModel", "CTRLConfig", tokens, N_EMBD | {"dff": 32}),
    ("OPTForCausalLM", "OPTConfig", tokens, SIZES | {"ffn_dim": 32, "word_embed_proj_dim": WIDTH}),
    ("BloomForCausalLM", "BloomConfig", tokens, SIZES | {"n_layer": 2, "n_head": 2}),
    ("FalconForCausalLM", "FalconConfig", tokens, SIZES),
    ("MptForCausalLM", "MptConfig", tokens, {"vocab_size": VOCABULARY, "d_model": WIDTH, "n_layers": 2, "n_heads": 2, "max_seq_len": 32}),
    ("BioGptForCausalLM", "BioGptConfig", tokens, SIZES),
    ("LlamaForCausalLM", "LlamaConfig", tokens, GROUPED),
    ("MistralForCausalLM", "MistralConfig", tokens, GROUPED),
    ("Qwen2ForCausalLM", "Qwen2Config", tokens, GROUPED),
    ("Qwen3ForCausalLM", "Qwen3Config", tokens, GROUPED),
    ("GemmaForCausalLM", "GemmaConfig", tokens, GROUPED),
    ("Gemma2ForCausalLM", "Gemma2Config", tokens, GROUPED),
    ("Gemma3ForCausalLM", "Gemma3TextConfig", tokens, GROUPED | {"sliding_window": 4}),
    ("PhiForCausalLM", "PhiConfig", tokens, SIZES),
    ("Phi3ForCausalLM", "Phi3Config", tokens, GROUPED),
    ("StableLmForCausalLM", "StableLmConfig", tokens, GROUPED),
    ("Starcoder2ForCausalLM", "Starcoder2Config", tokens, GROUPED),
    ("CohereForCausalLM", "CohereConfig", tokens, GROUPED),
    ("Olmo2ForCausalLM", "Olmo2Config", tokens, GROUPED),
    ("GraniteForCausalLM", "GraniteConfig", tokens, GROUPED),
    ("GlmForCausalLM", "GlmConfig", tokens, GROUPED),
    ("SmolLM3ForCausalLM", "SmolLM3Config", tokens, GROUPED),
    ("NemotronForCausalLM", "NemotronConfig", tokens, GROUPED),
    ("PersimmonForCausalLM", "PersimmonConfig", tokens, SIZES),
    ("DiffLlamaForCausalLM", "DiffLlamaConfig", tokens, GROUPED | {"num_key_value_heads": 2}),
    ("ModernBertDecoderForCausalLM", "ModernBertDecoderConfig", tokens, SIZES),
    # Mixtures of experts.
    ("MixtralForCausalLM", "MixtralConfig", tokens, EXPERTS),
    ("Qwen2MoeForCausalLM", "Qwen2MoeConfig", tokens, EXPERTS | {"shared_expert_intermediate_size": WIDTH}),
    ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", tokens, EXPERTS),
    ("OlmoeForCausalLM", "OlmoeConfig", tokens, EXPERTS),
    ("PhimoeForCausalLM", "PhimoeConfig", tokens, EXPERTS),
    ("GraniteMoeForCausalLM", "GraniteMoeConfig", tokens, EXPERTS),
    ("JetMoeForCausalLM", "JetMoeConfig", tokens, EXPERTS | {"kv_channels": 8}),
    ("GptOssForCausalLM", "GptOssConfig", tokens, EXPERTS | {"layer_types": ["sliding_attention", "full_attention"]}),
    ("DeepseekV2ForCausalLM", "DeepseekV2Config", tokens, EXPERTS | LATENT | {"n_routed_experts": 3, "n_shared_experts": 1, "first_k_dense_replace": 1, "num_key_value_heads": 2}),
    ("DeepseekV3ForCausalLM", "DeepseekV3Config", tokens, EXPERTS | LATENT | {"n_routed_experts": 4, "num_local_experts": 4, "num_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "num_key_value_heads": 2, "n_group": 2, "topk_group": 1}),
    # States, recurrences and short convolutions.
    ("MambaForCausalLM", "MambaConfig", tokens, STATES),
    ("Mamba2ForCausalLM", "Mamba2Config", tokens, STATES | {"num_heads": 4, "head_dim": 8, "n_groups": 1, "chunk_size": 4}),
    ("FalconMambaForCausalLM", "FalconMambaConfig", tokens, STATES),
    ("RwkvForCausalLM", "RwkvConfig", tokens, SIZES | {"attention_hidden_size": WIDTH, "context_length": 32}),
    ("RecurrentGemmaForCausalLM", "RecurrentGemmaConfig", tokens, GROUPED | {"num_hidden_layers": 3, "lru_width": WIDTH, "attention_window_size": 4}),
    ("BambaForCausalLM", "BambaConfig", tokens, GROUPED | MAMBA_HEADS | {"attn_layer_indices": [1]}),
    ("FalconH1ForCausalLM", "FalconH1Config", tokens, GROUPED | MAMBA_HEADS | {"mamba_d_ssm": 32}),
    ("JambaForCausalLM", "JambaConfig", tokens, EXPERTS | _MAMBA_OF_JAMBA | {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}),
    ("Lfm2ForCausalLM", "Lfm2Config", tokens, GROUPED | {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}),
]  # fmt: skip

ENCODERS: Rows = [
    ("BertForMaskedLM", "BertConfig", tokens, SIZES),
    ("RobertaForMaskedLM", "RobertaConfig", tokens, SIZES),
    ("DistilBertForMaskedLM", "DistilBertConfig", tokens, {"vocab_size": VOCABULARY, "dim": WIDTH, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 32}),
    ("AlbertForMaskedLM", "AlbertConfig", tokens, SIZES | {"embedding_size": 8}),
    ("ElectraForMaskedLM", "ElectraConfig", tokens, SIZES | {"embedding_size": 8}),
    ("DebertaForMaskedLM", "DebertaConfig", tokens, SIZES | _DISENTANGLED),
    ("DebertaV2ForMaskedLM", "DebertaV2Config", tokens, SIZES | _DISENTANGLED),
    ("MPNetForMaskedLM", "MPNetConfig", tokens, SIZES),
    ("MobileBertForMaskedLM", "MobileBertConfig", tokens, SIZES | {"embedding_size": WIDTH, "true_hidden_size": WIDTH, "intra_bottleneck_size": WIDTH, "num_feedforward_networks": 1}),
    ("ModernBertForMaskedLM", "ModernBertConfig", tokens, SIZES),
    ("SqueezeBertForMaskedLM", "SqueezeBertConfig", tokens, SIZES | _CONV | {"embedding_size": WIDTH}),
    ("FNetForMaskedLM", "FNetConfig", tokens, SIZES),
    ("ConvBertForMaskedLM", "ConvBertConfig", tokens, SIZES | {"embedding_size": WIDTH}),
    ("RoFormerForMaskedLM", "RoFormerConfig", tokens, SIZES | {"embedding_size": WIDTH}),
    ("NystromformerForMaskedLM", "NystromformerConfig", tokens, SIZES | {"num_landmarks": 4, "segment_means_seq_len": 4}),
    ("FunnelForMaskedLM", "FunnelConfig", tokens, {"vocab_size": VOCABULARY, "d_model": WIDTH, "n_head": 2, "d_head": 8, "d_inner": 32, "block_sizes": [1, 1], "num_decoder_layers": 1}),
    ("XLNetLMHeadModel", "XLNetConfig", tokens, {"vocab_size": VOCABULARY, "d_model": WIDTH, "n_layer": 2, "n_head": 2, "d_inner": 32}),
    ("XLMWithLMHeadModel", "XLMConfig", tokens, {"vocab_size": VOCABULARY, "emb_dim": WIDTH, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 32}),
    ("EsmForMaskedLM", "EsmConfig", tokens, SIZES | {"mask_token_id": 3}),
    ("BigBirdForMaskedLM", "BigBirdConfig", tokens, SIZES | {"attention_type": "original_full"}),
    ("IBertForMaskedLM", "IBertConfig", tokens, SIZES),
    ("NomicBertModel", "NomicBertConfig", tokens, SIZES),
    ("PerceiverForMaskedLM", "PerceiverConfig", tokens, {"vocab_size": VOCABULARY, "d_model": WIDTH, "d_latents": 8, "num_latents": 4, "num_blocks": 1, "num_self_attends_per_block": 1, "num_self_attention_heads": 2, "num_cross_attention_heads": 2, "max_position_embeddings": 5, "qk_channels": 8, "v_channels": 8}),
]  # fmt: skip

PAIRS: Rows = [
    ("T5ForConditionalGeneration", "T5Config", pairs, T5_SIZES),
    ("MT5ForConditionalGeneration", "MT5Config", pairs, T5_SIZES | {"feed_forward_proj": "gated-gelu"}),
    ("UMT5ForConditionalGeneration", "UMT5Config", pairs, T5_SIZES),
    ("LongT5ForConditionalGeneration", "LongT5Config", pairs, T5_SIZES, 60),
    ("SwitchTransformersForConditionalGeneration", "SwitchTransformersConfig", pairs, T5_SIZES | {"num_experts": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}, 80),
    ("BartForConditionalGeneration", "BartConfig", pairs, BART_SIZES),
    ("MBartForConditionalGeneration", "MBartConfig", pairs, BART_SIZES),
    ("PegasusForConditionalGeneration", "PegasusConfig", pairs, BART_SIZES),
    ("MarianMTModel", "MarianConfig", pairs, BART_SIZES),
    ("M2M100ForConditionalGeneration", "M2M100Config", pairs, BART_SIZES),
    ("ProphetNetForConditionalGeneration", "ProphetNetConfig", pairs, {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_encoder_layers": 1, "num_decoder_layers": 1, "num_encoder_attention_heads": 2, "num_decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 32, "ngram": 2, "num_buckets": 8}),
    ("T5GemmaForConditionalGeneration", "T5GemmaConfig", pairs, {"encoder": GROUPED | {"sliding_window": 4}, "decoder": GROUPED | {"sliding_window": 4}}),
]  # fmt: skip
