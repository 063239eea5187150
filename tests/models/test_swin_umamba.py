"""swin_umamba and its dagger: sizes of the logits, wiring, refusals."""

from __future__ import annotations

import pytest
import torch

from medplat import registry
from medplat.blocks.ss2d import SS2D
from medplat.errors import DataError
from medplat.models import swin_umamba, swin_umamba_dagger
from medplat.types import Task

TASK = Task("segment", 2, 2, 3)
LEVELS = {"swin_umamba": (1, 2, 4, 8), "swin_umamba_dagger": (1, 4, 8, 16)}


def network(name: str, **options):
    torch.manual_seed(1)
    module = registry.model(name)
    return module.build(module.Config(**{**module.SMALL, **options}), TASK).eval()


@pytest.mark.parametrize("name", LEVELS)
def test_deep_supervision_gives_a_list_largest_first(name):
    x = torch.randn(1, 2, 64, 96)
    found = network(name)(x)
    assert [one.shape for one in found] == [(1, 3, 64 // n, 96 // n) for n in LEVELS[name]]
    alone = network(name, deep_supervision=False)
    state = network(name).state_dict()
    if name == "swin_umamba_dagger":  # its head at full size comes last
        last = {name: one for name, one in state.items() if "seg_layers.3" in name}
        state |= {name.replace("layers.3", "layers.0"): one for name, one in last.items()}
    kept = {key: state[key] for key in alone.state_dict()}
    alone.load_state_dict(kept, strict=True)
    assert torch.equal(alone(x), found[0])


@pytest.mark.parametrize("name", LEVELS)
def test_a_size_that_would_be_cut_is_refused(name):
    with pytest.raises(DataError, match=r"multiples of 32.*to 64x32 for instance"):
        network(name)(torch.zeros(1, 2, 40, 32))


@pytest.mark.parametrize("name", LEVELS)
def test_the_twin_is_another_function(name):
    net, twin = network(name), network(name, ssm="off")
    for parameter in net.parameters():  # at the start the branches weigh little
        parameter.data += 0.2 * torch.randn_like(parameter)
    twin.load_state_dict(net.state_dict(), strict=False)
    x = torch.randn(1, 2, 32, 32)
    assert not torch.allclose(net(x)[0], twin(x)[0], atol=1e-3)


def without_blocks(net: torch.nn.Module) -> torch.nn.Module:
    for module in net.modules():
        if isinstance(module, SS2D):
            module.out_proj.weight.data.zero_()
    return net


def test_dagger_joins_the_expanded_map_and_the_skip():
    net = without_blocks(network("swin_umamba_dagger"))
    assert isinstance(net, swin_umamba_dagger.SwinUMambaDagger)
    x = torch.randn(1, 2, 32, 64)
    encoder, decoder = net.vssm_encoder, net.decoder
    maps = [encoder.patch_embed(x)]
    for merge in encoder.downsamples:
        maps.append(merge(maps[-1]))
    y = maps[3]
    for level in range(3):
        y = torch.cat([decoder.expand_layers[level](y), maps[2 - level]], -1)
        y = decoder.concat_back_dim[level](y)
        logits = decoder.seg_layers[level](y.permute(0, 3, 1, 2))
        assert torch.allclose(net(x)[3 - level], logits, atol=1e-6)
    full = decoder.expand_layers[3](y).permute(0, 3, 1, 2)
    assert torch.allclose(net(x)[0], decoder.seg_layers[3](full), atol=1e-6)


def test_every_skip_of_the_convolutional_decoder_has_its_own_size():
    net = without_blocks(network("swin_umamba"))
    assert isinstance(net, swin_umamba.SwinUMamba)
    x = torch.randn(1, 2, 64, 32)
    encoder = net.vssm_encoder
    maps = [net.stem(x)]
    tokens = encoder.patch_embed(maps[0])
    maps.append(tokens.permute(0, 3, 1, 2))
    for merge in encoder.downsamples:
        tokens = merge(tokens)
        maps.append(tokens.permute(0, 3, 1, 2))
    skips = [net.encoder1(x), net.encoder2(maps[0]), net.encoder3(maps[1])]
    skips += [net.encoder4(maps[2]), net.encoder5(maps[3])]
    assert [one.shape[1] for one in skips] == [4, 8, 16, 32, 64]
    y = net.decoder5(net.decoder6(maps[4], skips[4]), skips[3])
    y4 = net.decoder4(y, skips[2])
    y3 = net.decoder3(y4, skips[1])
    wanted = net.out_layers[0](net.decoder1(net.decoder2(y3, skips[0])))
    assert torch.allclose(net(x)[0], wanted, atol=1e-5)
    assert torch.allclose(net(x)[1], net.out_layers[1](y3), atol=1e-5)
    assert torch.allclose(net(x)[3], net.out_layers[3](y), atol=1e-5)
