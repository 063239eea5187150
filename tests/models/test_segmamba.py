"""segmamba: the names of the original, three orders, gate, twins, imported weights."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from torch.nn import functional as F

from medplat.blocks.ssm import MambaMixer
from medplat.commands.import_checkpoint import compare
from medplat.errors import DataError
from medplat.models import segmamba
from medplat.models.segmamba import (
    BRATS,
    ORGANS,
    SMALL,
    Config,
    GatedSpatialConvolution,
    MambaLayer,
    SegMamba,
)
from medplat.types import Task
from medplat_kernels.scan_orders import find

TWO = Task("segment", 3, 1, 2)
GOLDEN = {
    "segmamba_in4_out4": (BRATS, "f390677796211742"),
    "segmamba_in1_out14": (ORGANS, "83dffbc600830a06"),
}
FIXED = (64, 32, 16, 8)


def network(task: Task = TWO, **changes: object) -> SegMamba:
    torch.manual_seed(1)
    found = segmamba.build(Config.model_validate({**SMALL, **changes}), task)
    assert isinstance(found, SegMamba)
    return found.eval()


def shapes(task: Task, **options: object) -> dict[str, list[int]]:
    with torch.device("meta"):
        found = segmamba.build(Config.model_validate(options), task)
    return {name: list(one.shape) for name, one in found.named_parameters()}


@pytest.mark.parametrize("configuration", GOLDEN)
def test_names_and_shapes_are_the_originals(configuration: str) -> None:
    task, digest = GOLDEN[configuration]
    named = shapes(task)
    assert len(named) == 291
    text = json.dumps([[name, named[name]] for name in sorted(named)])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest


@pytest.mark.parametrize("configuration", GOLDEN)
def test_every_name_and_shape(configuration: str, realdata_path) -> None:
    path = realdata_path.parent / "specs" / "mamba_keys.json"
    if not path.is_file():
        pytest.skip(f"real data not found at {path}")
    wanted = json.loads(path.read_text(encoding="utf-8"))[configuration]["params"]
    assert shapes(GOLDEN[configuration][0]) == wanted


def test_the_twins_lack_the_scan_or_the_layer_and_nothing_else() -> None:
    on, off, removed = (shapes(BRATS, ssm=ssm) for ssm in ("on", "off", "removed"))
    assert all(off[name] == on[name] for name in off)
    assert all(removed[name] == off[name] for name in removed)
    gone = {name.split(".mamba.")[1].split(".")[0] for name in on.keys() - off.keys()}
    parts = {"x_proj", "dt_proj", "D"}
    assert gone == {part + end for part in parts for end in ("", "_b", "_s")} | {
        "A_log",
        "A_b_log",
        "A_s_log",
    }
    assert all(name.startswith("vit.stages.") for name in off.keys() - removed.keys())


def layers(net: SegMamba) -> list[MambaLayer]:
    return [stage[0] for stage in net.vit.stages]


def third_scans(
    net: SegMamba, shape: tuple[int, int, int]
) -> list[tuple[torch.Size, torch.Tensor]]:
    """Grid of each stage's tokens, as the layer gives it to its mixer, and its third order."""
    found: list[tuple[torch.Size, torch.Tensor]] = []
    for layer in layers(net):

        def note(mixer, given):
            found.append((given[1], find(mixer.orders[2]).positions(given[1])))

        layer.mamba.register_forward_pre_hook(note)
    with torch.no_grad():
        net(torch.zeros(1, 1, *shape))
    return found


@pytest.mark.parametrize("first", [64, 80, 96, 112])
def test_the_third_scan_runs_along_the_slices(first: int) -> None:
    scans = third_scans(network(), (first, 32, 16))
    for level, (grid, positions) in enumerate(scans, start=1):
        depth, rows, columns = first >> level, 32 >> level, 16 >> level
        assert tuple(grid) == (depth, rows, columns)
        index = torch.meshgrid(*(torch.arange(side) for side in grid), indexing="ij")
        steps = torch.stack(index, -1).reshape(-1, 3)[positions].view(-1, depth, 3)
        assert torch.equal(steps[..., 0], torch.arange(depth).expand(rows * columns, -1))
        assert torch.equal(steps[..., 1:], steps[:, :1, 1:].expand(-1, depth, -1))


@pytest.mark.parametrize("first", [64, 96, 128])
def test_legacy_cuts_the_sequence_into_fixed_parts(first: int) -> None:
    """Which is the scan along the slices at a first axis of 128 alone."""
    scans = third_scans(network(slices="legacy"), (first, 32, 32))
    for (grid, positions), parts in zip(scans, FIXED, strict=True):
        tokens = torch.arange(grid.numel())
        assert torch.equal(positions, torch.stack(tokens.chunk(parts), -1).flatten())
        along = tokens.view(grid).permute(1, 2, 0).flatten()
        assert torch.equal(positions, along) == (first == 128)


def alone(mixer: MambaMixer, suffix: str) -> MambaMixer:
    """The set of parameters of one order as a mixer of its own, in raster order."""
    single = MambaMixer(mixer.in_proj.in_features, state=mixer.get_parameter("A_log").shape[1])
    state = mixer.state_dict()
    names = {name: name.replace("_log", f"{suffix}_log") for name in ("A_log",)}
    for name in single.state_dict().keys() - {"A_log", "in_proj.weight", "out_proj.weight"}:
        head, dot, tail = name.partition(".")
        names[name] = f"{head}{suffix}{dot}{tail}"
    names["A_log"] = f"A{suffix}_log"
    single.load_state_dict({name: state[names.get(name, name)] for name in single.state_dict()})
    return single


def test_a_layer_is_the_sum_of_three_scans_of_the_volume() -> None:
    torch.manual_seed(2)
    layer = MambaLayer(6, 4, None, "on").double()
    x = torch.randn(2, 6, 3, 5, 7, dtype=torch.float64)
    one, back, along = (alone(layer.mamba, suffix).double() for suffix in ("", "_b", "_s"))
    volume = layer.norm(x.permute(0, 2, 3, 4, 1))
    raster = volume.flatten(1, 3)
    total = one(raster) + back(raster.flip(1)).flip(1)
    slices = along(volume.permute(0, 2, 3, 1, 4).flatten(1, 3)).view(2, 5, 7, 3, 6)
    wanted = total.view(volume.shape) + slices.permute(0, 3, 1, 2, 4)
    assert torch.allclose(layer(x), x + wanted.permute(0, 4, 1, 2, 3), atol=1e-9)


@pytest.mark.parametrize("gate", ["add", "mul"])
def test_gate(gate) -> None:
    torch.manual_seed(3)
    block = GatedSpatialConvolution(3, gate)
    x = torch.randn(2, 3, 4, 6, 5)

    def normed(y: torch.Tensor) -> torch.Tensor:
        space = (2, 3, 4)
        spread = y.var(space, unbiased=False, keepdim=True)
        return ((y - y.mean(space, keepdim=True)) / (spread + 1e-5).sqrt()).clamp(min=0)

    wide, narrow = normed(block.proj2(normed(block.proj(x)))), normed(block.proj3(x))
    joined = wide + narrow if gate == "add" else wide * narrow
    assert torch.allclose(block(x), x + normed(block.proj4(joined)), atol=1e-5)


def test_the_decoder_gets_a_map_that_the_next_stage_does_not() -> None:
    """Skips are normed and go through a perceptron; the next stage reads what was there before."""
    net = network(ssm="removed")
    x, vit = torch.randn(1, 1, 32, 16, 32), net.vit
    skips, y = [net.encoder1(x)], x
    for level in range(4):
        y = vit.downsample_layers[level][-1](y if level == 0 else F.instance_norm(y))
        y = vit.gscs[level](y)
        mlp = vit.mlps[level]
        out = mlp.fc2(F.gelu(mlp.fc1(F.instance_norm(y))))
        skips.append(net.get_submodule(f"encoder{level + 2}")(out))
    z = net.decoder5(skips[4], skips[3])
    z = net.decoder3(net.decoder4(z, skips[2]), skips[1])
    wanted = net.out(net.decoder1(net.decoder2(z, skips[0])))
    assert torch.allclose(net(x), wanted, atol=1e-5)


def test_removed_is_the_network_whose_mixers_say_nothing() -> None:
    net, removed = network(), network(ssm="removed")
    removed.load_state_dict(net.state_dict(), strict=False)
    x = torch.randn(1, 1, 16, 32, 16)
    with torch.no_grad():
        assert not torch.allclose(net(x), removed(x), atol=1e-3)
        for layer in layers(net):
            layer.mamba.out_proj.weight.zero_()
        assert torch.equal(net(x), removed(x))


def test_off_differs_from_on() -> None:
    net, off = network(), network(ssm="off")
    off.load_state_dict(net.state_dict(), strict=False)
    x = torch.randn(1, 1, 16, 32, 16)
    with torch.no_grad():
        assert net(x).shape == off(x).shape
        assert not torch.allclose(net(x), off(x), atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [((32, 40, 32), r"multiples of 16.*to 32x48x32 for instance"), ((16,) * 3, "16x16x32")],
)
def test_sizes_that_do_not_fit_are_refused(shape: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        network()(torch.zeros(1, 1, *shape))


def test_legacy_refuses_what_it_cannot_cut() -> None:
    with pytest.raises(DataError, match=r"10x10x10 into 16 parts.*slices: auto"):
        network(slices="legacy")(torch.zeros(1, 1, 80, 80, 80))


def test_overfits_a_batch() -> None:
    torch.manual_seed(0)
    net = network(channels=(8, 16, 32, 64), hidden=64, state=16).train()
    x = torch.randn(1, 1, 16, 16, 32)
    truth = (F.avg_pool3d(x, 5, 1, 2)[:, 0] > 0).long()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(16):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), truth)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        right = (net.eval()(x).argmax(1) == truth).float().mean()
    assert float(right) > 0.9


def original_names() -> list[str]:
    """Names of the original's tensors for one layer a stage, as its files have them."""
    convolutions = ["downsample_layers.0.0", *(f"downsample_layers.{i}.1" for i in (1, 2, 3))]
    mixers = []
    for i in range(4):
        convolutions += [f"gscs.{i}.proj{end}" for end in ("", "2", "3", "4")]
        convolutions += [f"mlps.{i}.fc{end}" for end in (1, 2)]
        mixer = f"stages.{i}.0.mamba"
        convolutions.append(f"stages.{i}.0.norm")
        mixers += [f"{mixer}.in_proj.weight", f"{mixer}.out_proj.weight"]
        for end in ("", "_b", "_s"):
            convolutions += [f"{mixer}.conv1d{end}", f"{mixer}.dt_proj{end}"]
            mixers += [f"{mixer}.A{end}_log", f"{mixer}.D{end}", f"{mixer}.x_proj{end}.weight"]
    names = [f"vit.{name}.{part}" for name in convolutions for part in ("weight", "bias")]
    names += [f"vit.{name}" for name in mixers]
    blocks = [f"encoder{i}.layer" for i in range(1, 6)] + ["decoder1.layer"]
    blocks += [f"decoder{i}.conv_block" for i in range(2, 6)]
    names += [f"{block}.conv{i}.conv.weight" for block in blocks for i in (1, 2, 3)]
    names += [f"decoder{i}.transp_conv.conv.weight" for i in range(2, 6)]
    names.remove("decoder1.layer.conv3.conv.weight")  # as many channels in as out
    return [*names, "out.conv.conv.weight", "out.conv.conv.bias"]


def test_weights_with_the_originals_names_fit() -> None:
    changes = {"channels": (2, 3, 4, 5), "hidden": 6}
    net, other = network(**changes), network(**changes)
    made = {f"module.{name}": torch.randn_like(net.state_dict()[name]) for name in original_names()}
    state = segmamba.import_keys(made)
    other.load_state_dict(state, strict=True)
    for name, parameter in net.named_parameters():
        parameter.data = made[f"module.{name}"]
    x = torch.randn(1, 1, 16, 16, 32)
    with torch.no_grad():
        assert torch.equal(net(x), other(x))


@pytest.mark.parametrize("harm", ["missing", "extra", "wrong_shape"])
def test_one_wrong_tensor_is_named(harm: str) -> None:
    net = network()
    state = {f"module.{name}": one for name, one in net.state_dict().items()}
    name = "vit.stages.0.0.mamba.A_s_log"
    if harm == "missing":
        del state[f"module.{name}"]
    elif harm == "extra":
        name += "_again"
        state[f"module.{name}"] = torch.zeros(1)
    else:
        state[f"module.{name}"] = torch.zeros(1)
    fit = compare(segmamba.import_keys(state), net)
    assert fit.differences == 1
    assert getattr(fit, harm)[0].startswith(name)
