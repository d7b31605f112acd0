"""What surrounds the tasks of an evaluation."""

from transformers import ViTConfig, ViTModel

from esvit_hf.evaluation.running import open_network


def test_a_loaded_network_is_given_back_as_it_was() -> None:
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    network = ViTModel(ViTConfig(image_size=32, patch_size=16, **small)).train()
    network.layernorm.bias.requires_grad_(False)
    trained = [parameter.requires_grad for parameter in network.parameters()]
    with open_network(network, None) as backbone:
        backbone.eval()
        # Its pooling head has no effect on features.
        assert sum(parameter.requires_grad for parameter in network.parameters()) < sum(trained)
    assert network.training
    assert [parameter.requires_grad for parameter in network.parameters()] == trained
