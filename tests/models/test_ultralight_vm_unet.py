"""ultralight_vm_unet: the original's count and names, each part in plain terms, start values."""

from __future__ import annotations

import hashlib
import json
import math

import pytest
import torch
from torch.nn import functional as F

from medplat.errors import DataError
from medplat.models import ultralight_vm_unet
from medplat.models.ultralight_vm_unet import PUBLISHED, SMALL, Config
from medplat.types import Task

TWO = Task("segment", 2, 3, 2)


def network(task: Task = TWO, **options: object) -> torch.nn.Module:
    torch.manual_seed(4)
    return ultralight_vm_unet.build(Config.model_validate({**SMALL, **options}), task).eval()


def shapes(**options: object) -> dict[str, list[int]]:
    with torch.device("meta"):
        built = ultralight_vm_unet.build(Config.model_validate(options), PUBLISHED)
    return {name: list(one.shape) for name, one in built.named_parameters()}


def count(named: dict[str, list[int]]) -> int:
    return sum(torch.Size(shape).numel() for shape in named.values())


def test_golden():
    """Counted on the original's class; the digest is over the sorted [name, shape] pairs."""
    named = shapes()
    assert (count(named), len(named)) == (49_457, 129)
    text = json.dumps([[name, named[name]] for name in sorted(named)])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "14c980f5b671642f"


def test_every_name_and_shape(realdata_path):
    path = realdata_path.parent / "specs" / "mamba_keys.json"
    if not path.is_file():
        pytest.skip(f"real data not found at {path}")
    wanted = json.loads(path.read_text(encoding="utf-8"))["ultralight_vm_unet"]["params"]
    assert shapes() == wanted


def test_twins():
    on, off, removed = (shapes(ssm=ssm) for ssm in ("on", "off", "removed"))
    assert (count(off), count(removed)) == (43_009, 38_141)
    gone = {name.partition(".mamba.")[2] for name in on.keys() - off.keys()}
    assert gone == {"x_proj.weight", "dt_proj.weight", "dt_proj.bias", "A_log", "D"}


def perturbed(**options: object) -> torch.nn.Module:
    """Every parameter away from its start, so that no part weighs nothing."""
    net = network(**options)
    for parameter in net.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return net


@pytest.mark.parametrize("ssm", ["on", "removed"])
def test_four_groups_of_channels_go_through_one_mixer(ssm):
    block = perturbed(ssm=ssm).encoder4[0]
    x = torch.randn(2, 8, 5, 6)
    tokens = block.norm(x.permute(0, 2, 3, 1).reshape(2, 30, 8))
    groups = []
    for first in range(0, 8, 2):
        group = tokens[..., first : first + 2]
        mixed = block.mamba(group) if ssm == "on" else torch.zeros(())
        groups.append(mixed + block.skip_scale * group)
    wanted = block.proj(block.norm(torch.cat(groups, -1)))
    found = block(x).permute(0, 2, 3, 1).reshape(2, 30, -1)
    assert torch.allclose(found, wanted, atol=1e-5)


def test_the_bridge():
    bridge = perturbed().scab
    maps = [torch.randn(2, width, 6, 7) for width in SMALL["channels"][:5]]
    weighed = []
    for x in maps:
        seen = torch.stack([x.mean(1), x.max(1).values], 1)
        conv = bridge.satt.shared_conv2d[0]
        spatial = F.conv2d(seen, conv.weight, conv.bias, padding=9, dilation=3)
        weighed.append(spatial.sigmoid() * x)
    both = [w + x for w, x in zip(weighed, maps, strict=True)]
    means = torch.cat([x.flatten(2).mean(2) for x in both], 1)
    left, here, right = bridge.catt.get_all_att.weight.flatten()
    seen = F.pad(means, (1, 1))
    seen = left * seen[:, :-2] + here * seen[:, 1:-1] + right * seen[:, 2:]
    for level, found in enumerate(bridge(maps)):
        linear = bridge.catt.get_submodule(f"att{level + 1}")
        weight = torch.sigmoid(seen @ linear.weight.T + linear.bias)[:, :, None, None]
        assert torch.allclose(found, weight * both[level] + weighed[level], atol=1e-5)


def doubled(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


@pytest.mark.parametrize("bridge", [True, False])
def test_the_way_down_and_up(bridge):
    """Level six reads the map before the bridge; skips are added after the activation."""
    net = perturbed(bridge=bridge)
    x = y = torch.randn(1, 3, 64, 32)
    skips = []
    encoders = (net.encoder1, net.encoder2, net.encoder3, net.encoder4, net.encoder5)
    for encoder, norm in zip(encoders, (net.ebn1, net.ebn2, net.ebn3, net.ebn4, net.ebn5),
                             strict=True):  # fmt: skip
        assert norm.num_groups == 4
        y = F.gelu(F.max_pool2d(norm(encoder(y)), 2))
        skips.append(y)
    assert [skip.shape[2] for skip in skips] == [32, 16, 8, 4, 2]
    y = F.gelu(net.encoder6(y))
    t1, t2, t3, t4, t5 = net.scab(skips) if bridge else skips
    y = F.gelu(net.dbn1(net.decoder1(y))) + t5
    y = F.gelu(doubled(net.dbn2(net.decoder2(y)))) + t4
    y = F.gelu(doubled(net.dbn3(net.decoder3(y)))) + t3
    y = F.gelu(doubled(net.dbn4(net.decoder4(y)))) + t2
    y = F.gelu(doubled(net.dbn5(net.decoder5(y)))) + t1
    assert torch.allclose(net(x), doubled(net.final(y)), atol=1e-5)


@pytest.mark.parametrize("init", ["mamba", "paper_repo"])
def test_start_values(init):
    torch.manual_seed(0)
    net = ultralight_vm_unet.build(Config.model_validate({"init": init}), PUBLISHED)
    projections = [one for name, one in net.named_modules() if name.endswith("dt_proj")]
    assert len(projections) == 6
    for projection in projections:
        step = F.softplus(projection.bias)
        if init == "paper_repo":
            assert not projection.bias.any()
            assert torch.equal(step, F.softplus(torch.zeros_like(step)))
            assert projection.weight.abs().max() < 0.1
        else:
            assert step.min() >= 1e-4
            assert step.max() <= 0.1 + 1e-6
            assert projection.weight.abs().max() > 0.5
    deviations = {
        "decoder1.0.proj.weight": 0.02,
        "decoder1.0.mamba.in_proj.weight": 0.02,
        "decoder1.0.mamba.conv1d.weight": math.sqrt(2 / (4 * 32)),
        "encoder3.0.weight": math.sqrt(2 / (9 * 24)),
    }
    for name, wanted in deviations.items():
        assert net.get_parameter(name).std().item() == pytest.approx(wanted, rel=0.2), name
    assert not net.encoder3[0].bias.any()
    assert torch.equal(net.encoder4[0].skip_scale, torch.ones(1))


@pytest.mark.parametrize("size", [(33, 64), (64, 48)])
def test_a_size_that_is_no_multiple_is_refused(size):
    with pytest.raises(DataError, match=r"multiples of 32.*to 64x64 for instance"):
        network()(torch.zeros(1, 3, *size))


def test_weights_of_one_class_become_background_and_class():
    """Names as in the original's files; the softmax of two logits is its sigmoid of one."""
    original, ours = perturbed(task=Task("segment", 2, 3, 1)), network()
    ours.load_state_dict(ultralight_vm_unet.import_keys(original.state_dict()), strict=True)
    x = torch.randn(1, 3, 32, 64)
    assert torch.allclose(ours(x).softmax(1)[:, 1:], original(x).sigmoid(), atol=1e-6)
    nine = perturbed(task=Task("segment", 2, 3, 9)).state_dict()
    assert ultralight_vm_unet.import_keys(nine).keys() == nine.keys()


def test_the_twins_are_of_the_same_shape_and_other_functions():
    net, off, removed = perturbed(), network(ssm="off"), network(ssm="removed")
    for twin in (off, removed):
        twin.load_state_dict(net.state_dict(), strict=False)
    x = torch.randn(1, 3, 64, 32)
    assert net(x).shape == off(x).shape == removed(x).shape
    assert not torch.allclose(net(x), off(x), atol=1e-4)
    assert not torch.allclose(off(x), removed(x), atol=1e-4)


def test_overfits_a_batch():
    """Discs on noise, the published widths: the Dice of the disc comes close to one."""
    torch.manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    centres = ((20, 24, 12), (40, 38, 16))
    truth = torch.stack(
        [(rows - y).square() + (columns - x).square() < radius**2 for y, x, radius in centres]
    ).long()
    images = truth[:, None] + 0.5 * torch.randn(2, 3, 64, 64)
    net = ultralight_vm_unet.build(Config(), TWO).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(15):
        optimizer.zero_grad()
        logits = net(images)
        F.cross_entropy(logits, truth).backward()
        optimizer.step()
    found = logits.argmax(1)
    assert 2 * (found * truth).sum() / (found.sum() + truth.sum()) > 0.95
