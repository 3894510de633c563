"""How deep parameters lie in a network that begins with convolutions and a weight-normalised one."""

from transformers import AutoModel, Wav2Vec2Config

from bigssl.nets.depth import depths


def test_the_weight_norm_of_a_sound_network_is_no_list_of_blocks() -> None:
    model = AutoModel.from_config(Wav2Vec2Config(
        conv_dim=[8, 8], conv_kernel=[10, 3], conv_stride=[5, 2], num_feat_extract_layers=2, hidden_size=16,
        num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2))  # fmt: skip
    found, last = depths(model)
    assert last == 4 and found["encoder.layers.2.attention.k_proj.weight"] == 3
    positions = {depth for name, depth in found.items() if "pos_conv_embed" in name}
    assert positions == {found["feature_extractor.conv_layers.0.conv.weight"]} == {0}
