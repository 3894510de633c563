"""Which types of transformers networks serve as backbones, and why some others, which might train, do not.

A type stands here once the tests have seen a tiny one train, export and load again (`tests/nets/test_kinds.py`): image
types give the same features for the same picture, text types see both sides of a token (CAUSAL: those before it only,
which not every task allows), do not see padding, and have a position for every token of the length they allow. Those
of ENCODER_DECODER read a text so, and write another. A network outside the tables could break one of these in silence.
"""

from __future__ import annotations

import inspect

from transformers import PreTrainedModel

import bigssl.nets.known  # noqa: F401 - two of these types are ours

IMAGE = (
    "beit", "bit", "clip_vision_model", "convnext", "convnextv2", "data2vec-vision", "deit", "dinov2",
    "dinov2_with_registers", "dinov3_vit", "efficientnet", "focalnet", "hiera", "ijepa", "levit", "mobilenet_v1",
    "mobilenet_v2", "mobilevit", "mobilevitv2", "poolformer", "pvt_v2", "regnet", "resnet", "resnet_cifar",
    "segformer", "siglip_vision_model", "swiftformer", "swin", "swinv2", "vit", "vit_msn",
)  # fmt: skip
TRANSFORMERS = (
    "beit", "clip_vision_model", "data2vec-vision", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit", "ijepa",
    "siglip_vision_model", "vit", "vit_msn",
)  # fmt: skip
"""Vision transformers, which keep one hidden state for each patch of the picture."""
WHOLE_PATCHES = (*TRANSFORMERS, "convnext", "convnextv2")
"""Those that see of a picture only what fills a patch; others fill it up (Swin) or have patches that overlap."""
ONE_SIDE = ("levit",)
"""Image types that take pictures of their own side only; all others take those of other sides too (small crops)."""
TEXT = (
    "albert", "bert", "bert-generation", "camembert", "data2vec-text", "deberta", "deberta-v2", "distilbert", "electra",
    "ernie", "eurobert", "flaubert", "gte", "ibert", "megatron-bert", "modernbert", "mpnet", "nomic_bert",
    "rembert", "roberta", "roberta-prelayernorm", "roformer", "squeezebert", "xlm", "xlm-roberta", "xlm-roberta-xl",
)  # fmt: skip
CAUSAL = (
    "gemma", "gpt2", "gpt_neox", "granite", "llama", "mistral", "olmo2", "opt", "phi", "qwen2", "qwen3", "smollm3",
    "stablelm", "starcoder2",
)  # fmt: skip
ENCODER_DECODER = ("bart", "mbart", "pegasus")
"""Text types that read with an encoder and write with a decoder. Their features are what the encoder makes of a text: a
token sees both its sides there, and half of the network need not be run."""
SEGMENTS = "token_type_ids"
"""What transformers calls the ids that tell two pieces of a text apart."""
OBSERVED = {"patchtst": "past_observed_mask", "patchtsmixer": "observed_mask", "ts2vec": "past_observed_mask"}
"""Types of series networks, and what each calls the mask of values that were observed."""
SERIES = tuple(OBSERVED)
BY_CHANNEL = ("patchtst", "patchtsmixer")
"""Those with states of each channel by itself, [B, C, patches, D]; of others, of all together, [B, steps, D]."""
AUDIO = (
    "data2vec-audio", "hubert", "sew", "unispeech", "unispeech-sat", "wav2vec2", "wav2vec2-conformer", "wavlm",
)  # fmt: skip
STILL = {
    "layerdrop": 0.0, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0, "mask_time_prob": 0.0,
    "mask_feature_prob": 0.0, "do_mask_input": False,
}  # fmt: skip
"""Fields with which a network hides parts of its input or of itself by a generator of the process, and their values
without that. A task that hides something does it by the samples' own randomness."""
WHY_NOT = {
    "convbert": "its convolutions see the padding",
    "fnet": "it sees the padding",
    "mobilebert": "the last token of a text sees the padding behind it",
    "nystromformer": "its attention is approximated over the padding too",
    "pvt": "its class token stands among the patches",
    "t5": "its head scales what its decoder makes; bart, mbart and pegasus read and write without that",
    "vit_mae": "it hides 75 % of the patches from itself, in evaluation too; vit is the same network without that",
    "yolos": "its detection tokens are no patches",
    "yoso": "its attention is approximated at random",
}

_UNUSED = {
    "clip_vision_model": ("post_layernorm",), "convnext": ("layernorm",), "convnextv2": ("layernorm",),
    "siglip_vision_model": ("head",), "wav2vec2-conformer": ("encoder.pos_conv_embed",),
}  # fmt: skip


def unused_parameters(model: PreTrainedModel) -> set[str]:
    """Names of what our features do not pass through (a pooler, a mask token): it learns nothing."""
    parts = ("pooler", "embeddings.mask_token", "masked_spec_embed", *_UNUSED.get(model.config.model_type, ()))
    return {n for n, _ in model.named_parameters() if any(n == part or n.startswith(part + ".") for part in parts)}


def tells_segments(model: PreTrainedModel) -> bool:
    """Whether a text network has an embedding for each of two pieces of a text (BERT; RoBERTa and others have none, or
    one for all)."""
    kinds = getattr(model.config, "type_vocab_size", None) or 0
    return kinds > 1 and SEGMENTS in inspect.signature(model.forward).parameters
