"""Models of transformers that see, hear, or read series: class, configuration, batch, settings, at most how many modules."""

from __future__ import annotations

from .batches import numbers, pixels, pixels_and_tokens, spectrum_and_tokens
from .sizes import OF_IMAGES, OF_SOUND, PYRAMID, SERIES, SIZES, SPECTRA, STAGES, TWO_TOWERS, WIDTH, WINDOWS
from .transformers_text import Rows

_PATCHES = {key: size for key, size in OF_IMAGES.items() if key != "image_size"}
_WAVE = numbers("input_values", 400)

SENSES: Rows = [
    ("ViTForImageClassification", "ViTConfig", pixels(8), OF_IMAGES),
    ("BeitForImageClassification", "BeitConfig", pixels(8), OF_IMAGES | {"use_relative_position_bias": True}),
    ("Dinov2ForImageClassification", "Dinov2Config", pixels(8), OF_IMAGES),
    ("ViTMAEForPreTraining", "ViTMAEConfig", pixels(8), OF_IMAGES | {"decoder_hidden_size": WIDTH, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 32}),
    ("SwinForImageClassification", "SwinConfig", pixels(16), WINDOWS),
    ("Swinv2ForImageClassification", "Swinv2Config", pixels(16), WINDOWS),
    ("ConvNextForImageClassification", "ConvNextConfig", pixels(16), STAGES | {"num_stages": 2, "patch_size": 2}),
    ("ConvNextV2ForImageClassification", "ConvNextV2Config", pixels(16), STAGES | {"num_stages": 2, "patch_size": 2}),
    ("ResNetForImageClassification", "ResNetConfig", pixels(16), STAGES | {"embedding_size": 8, "layer_type": "basic"}),
    ("RegNetForImageClassification", "RegNetConfig", pixels(16), STAGES | {"embedding_size": 8, "groups_width": 4}),
    ("BitForImageClassification", "BitConfig", pixels(32), STAGES | {"embedding_size": 8, "num_groups": 2}),
    ("MobileNetV2ForImageClassification", "MobileNetV2Config", pixels(32), {"depth_multiplier": 0.25, "image_size": 32}, 60),
    ("MobileViTForImageClassification", "MobileViTConfig", pixels(32), {"image_size": 32, "hidden_sizes": [8, 8, 16], "neck_hidden_sizes": [4, 4, 8, 8, 8, 8, 16], "num_attention_heads": 2}, 80),
    ("PoolFormerForImageClassification", "PoolFormerConfig", pixels(32), {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}),
    ("PvtForImageClassification", "PvtConfig", pixels(32), PYRAMID | {"image_size": 32}),
    ("SegformerForSemanticSegmentation", "SegformerConfig", pixels(32), PYRAMID | {"decoder_hidden_size": WIDTH}),
    ("LevitForImageClassification", "LevitConfig", pixels(32), {"image_size": 32, "hidden_sizes": [8, 16, 16], "num_attention_heads": [1, 2, 2], "depths": [1, 1, 1], "key_dim": [4, 4, 4]}),
    ("FocalNetForImageClassification", "FocalNetConfig", pixels(16), STAGES | {"image_size": 16, "patch_size": 2, "embed_dim": 8, "focal_levels": [1, 1], "focal_windows": [3, 3]}),
    ("HieraForImageClassification", "HieraConfig", pixels(32), {"image_size": [32, 32], "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "patch_size": [3, 3], "patch_stride": [2, 2], "patch_padding": [1, 1], "num_query_pool": 1, "masked_unit_size": [4, 4]}),
    ("VivitForVideoClassification", "VivitConfig", numbers("pixel_values", 4, 3, 8, 8), OF_IMAGES | {"num_frames": 4, "tubelet_size": [2, 4, 4]}),
    ("VideoMAEForVideoClassification", "VideoMAEConfig", numbers("pixel_values", 4, 3, 8, 8), OF_IMAGES | {"num_frames": 4, "tubelet_size": 2}),
    # Images and text.
    ("CLIPModel", "CLIPConfig", pixels_and_tokens, TWO_TOWERS),
    ("SiglipModel", "SiglipConfig", pixels_and_tokens, TWO_TOWERS),
    ("BlipModel", "BlipConfig", pixels_and_tokens, TWO_TOWERS),
    ("ViltModel", "ViltConfig", pixels_and_tokens, SIZES | OF_IMAGES),
    # Sound.
    ("Wav2Vec2ForCTC", "Wav2Vec2Config", _WAVE, OF_SOUND),
    ("HubertForCTC", "HubertConfig", _WAVE, OF_SOUND),
    ("WavLMForCTC", "WavLMConfig", _WAVE, OF_SOUND),
    ("SEWForCTC", "SEWConfig", _WAVE, OF_SOUND | {"squeeze_factor": 2}),
    ("Wav2Vec2BertForCTC", "Wav2Vec2BertConfig", numbers("input_features", 8, 8), SIZES | {"feature_projection_input_dim": 8, "apply_spec_augment": False, "conv_depthwise_kernel_size": 3}),
    ("WhisperForConditionalGeneration", "WhisperConfig", spectrum_and_tokens(8, 16), SPECTRA | {"max_source_positions": 8, "max_target_positions": 16}),
    ("Speech2TextForConditionalGeneration", "Speech2TextConfig", spectrum_and_tokens(16, 8), SPECTRA | {"input_feat_per_channel": 8, "conv_channels": 8, "max_source_positions": 32}),
    ("ASTForAudioClassification", "ASTConfig", numbers("input_values", 16, 8), _PATCHES | {"max_length": 16, "num_mel_bins": 8, "frequency_stride": 4, "time_stride": 4}),
    # Series of numbers.
    ("PatchTSTForRegression", "PatchTSTConfig", numbers("past_values", 8, 2), SERIES | {"d_model": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 32}),
    ("PatchTSMixerForRegression", "PatchTSMixerConfig", numbers("past_values", 8, 2), SERIES | {"d_model": 8, "num_layers": 2}),
]  # fmt: skip
