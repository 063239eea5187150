"""The conformance suite for model plugins, ours and others'.

In a test of a third party's package: `medplat.testing.check_model("their_plugin")`; on the command
line: `medplat check --plugin their_plugin`. Both need `medplat[ml]`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from pydantic import BaseModel
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from medplat import registry
from medplat.errors import MedplatError, PluginError
from medplat.types import Card, Task

FIDELITY = ("verified", "reconstruction", "inspired")
KINDS = ("segment", "classify", "restore")
SIZES = {1: (13,), 2: (32, 48), 3: (16, 24, 16)}
ODD_SIZES = {1: ((21,), (1,)), 2: ((37, 50), (19, 3)), 3: ((17, 20, 24), (5, 9, 3))}
TOLERANCE = 1e-4
HALF_TOLERANCE = 0.1


@dataclass(frozen=True)
class Subject:
    """What the checks of a network are run on: a plugin, one of its configurations, a task."""

    module: Any
    config: BaseModel
    task: Task

    @property
    def card(self) -> Card:
        """The plugin's card."""
        return cast(Card, self.module.CARD)

    def build(self) -> nn.Module:
        """A new network."""
        return cast(nn.Module, self.module.build(self.config, self.task))


Check = Callable[[nn.Module, Subject], str]


@dataclass(frozen=True)
class Result:
    """One check that held.

    Attributes:
        check: What was checked, and on what.
        detail: Numbers worth seeing.
    """

    check: str
    detail: str = ""

    def __str__(self) -> str:
        return f"ok   {self.check}" + (f": {self.detail}" if self.detail else "")


def check_model(name: str) -> list[Result]:
    """Run every check on a model plugin.

    Returns:
        What held, one line a check.

    Raises:
        PluginError: Something does not hold; all of it in one message.
        MissingExtra: The plugin needs a package that is not installed.
    """
    return check_module(registry.model(name), name)


def check_module(module: ModuleType | Any, name: str) -> list[Result]:
    """`check_model` on a module that is already imported."""
    results: list[Result] = []
    failures: list[str] = []
    for title, check in _checks(module):
        try:
            results.append(Result(title, check()))
        except AssertionError as failure:
            failures.append(f"{title}: {failure}")
        except Exception as error:
            failures.append(f"{title}: {type(error).__name__}: {error}")
    if failures:
        raise PluginError("\n".join(f"model plugin '{name}': {text}" for text in failures))
    return results


def _checks(module: Any) -> Iterator[tuple[str, Callable[[], str]]]:
    card: Card = module.CARD
    yield "CARD is complete", partial(_card, card)
    yield "Config is documented", partial(_config, module)
    yield "TINY and TWIN", partial(_twin, module)
    for count in card.counts:
        yield f"parameters of {count.label}", partial(_count, module, count)
    variants = {"TINY": module.TINY, "TWIN": module.TWIN}
    for label, config in variants.items():
        if config is None:
            continue
        for kind in card.kinds:
            for dims in card.spatial_dims:
                subject = Subject(module, config, _task(kind, dims))
                for title, check in NETWORK_CHECKS.items():
                    yield f"{label}, {kind}, {dims}-D: {title}", partial(_run, check, subject)


def _task(kind: str, dims: int) -> Task:
    """Two channels in; out three classes, or for restore the same two."""
    return Task(kind, dims, 2, 2 if kind == "restore" else 3)


def _run(check: Check, subject: Subject) -> str:
    with _seeded(0):
        return check(subject.build(), subject)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Fixed random numbers inside, the caller's own untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _card(card: Card) -> str:
    assert isinstance(card, Card), "CARD must be a medplat.types.Card"
    for field in ("title", "paper", "why", "upstream_licence"):
        assert str(getattr(card, field)).strip(), f"CARD.{field} is empty"
    assert card.fidelity in FIDELITY, f"CARD.fidelity is {card.fidelity!r}, not in {FIDELITY}"
    assert card.counts, "CARD.counts names no parameter integer"
    assert set(card.kinds) <= set(KINDS), f"CARD.kinds {card.kinds} are not all in {KINDS}"
    assert card.kinds, "CARD.kinds is empty"
    assert set(card.spatial_dims) <= {1, 2, 3}, f"CARD.spatial_dims is {card.spatial_dims}"
    assert card.spatial_dims, "CARD.spatial_dims is empty"
    assert card.multiple >= 1, f"CARD.multiple is {card.multiple}"
    return card.fidelity


def _config(module: Any) -> str:
    config = module.Config
    assert issubclass(config, BaseModel), "Config must be a pydantic BaseModel"
    assert config.model_config.get("extra") == "forbid", "Config must forbid unknown keys"
    assert config.model_config.get("frozen"), "Config must be frozen"
    silent = [key for key, field in config.model_fields.items() if not field.description]
    assert not silent, f"fields without a description: {', '.join(silent)}"
    return f"{len(config.model_fields)} keys"


def _twin(module: Any) -> str:
    tiny, twin = module.TINY, module.TWIN
    assert isinstance(tiny, module.Config), "TINY must be an instance of Config"
    if twin is None:
        return "no twin: a baseline"
    assert isinstance(twin, module.Config), "TWIN must be an instance of Config, or None"
    differing = [key for key in type(tiny).model_fields if getattr(tiny, key) != getattr(twin, key)]
    assert len(differing) == 1, (
        f"TWIN must differ from TINY in one key, not in {differing or 'none'}"
    )
    return f"{differing[0]}: {getattr(tiny, differing[0])} and {getattr(twin, differing[0])}"


def _count(module: Any, count: Any) -> str:
    """On the meta device: no memory, whatever the size."""
    with torch.device("meta"):
        network = module.build(module.Config.model_validate(dict(count.options)), count.task)
    found = parameters(network)
    assert found == count.parameters, f"{found:,} parameters, the card says {count.parameters:,}"
    return f"{found:,}"


def parameters(network: nn.Module) -> int:
    """Number of trainable and frozen parameters."""
    return sum(weight.numel() for weight in network.parameters())


def first(output: Any) -> torch.Tensor:
    """The logits; of a network with deep supervision those of full size."""
    return _outputs(output)[0]


def _input(subject: Subject, size: tuple[int, ...] | None = None, batch: int = 2) -> torch.Tensor:
    step, task = subject.card.multiple, subject.task
    if subject.card.fixed_size:
        with torch.device("meta"):
            size = subject.build().input_size  # type: ignore[assignment]
    size = tuple(-(-side // step) * step for side in size or SIZES[task.spatial_dims])
    return torch.randn(batch, task.in_channels, *size)


def _wanted_shape(task: Task, x: torch.Tensor) -> tuple[int, ...]:
    space = () if task.kind == "classify" else tuple(x.shape[2:])
    return (x.shape[0], task.out_channels, *space)


def _forward(network: nn.Module, subject: Subject) -> str:
    x = _input(subject)
    before = x.clone()
    logits = first(network.eval()(x))
    assert torch.equal(x, before), "forward changed its input in place"
    wanted = _wanted_shape(subject.task, x)
    assert tuple(logits.shape) == wanted, f"logits are {tuple(logits.shape)}, not {wanted}"
    assert logits.dtype == torch.float32, f"logits are {logits.dtype}"
    assert torch.isfinite(logits).all(), "logits are not finite"
    again = first(network(x))
    assert torch.equal(logits, again), "the same input in eval mode gave other logits"
    return ""


def _batch(network: nn.Module, subject: Subject) -> str:
    x = _input(subject)
    network.eval()
    with torch.no_grad():
        both = first(network(x))
        alone = torch.cat([first(network(x[one : one + 1])) for one in range(len(x))])
    off = (both - alone).abs().max().item()
    assert off < TOLERANCE, f"a case's logits depend on its batch, by {off:.2g}"
    return f"within {off:.1g}"


def _gradients(network: nn.Module, subject: Subject) -> str:
    x = _input(subject)
    start = time.process_time()
    outputs = _outputs(network.train()(x))
    _total(outputs).backward()  # type: ignore[no-untyped-call]
    seconds = time.process_time() - start
    named = _trained(network, subject)
    unused = [key for key, weight in named if weight.grad is None]
    assert not unused, f"no gradient reaches {', '.join(unused[:5])}"
    odd = [key for key, weight in named if not torch.isfinite(weight.grad).all()]  # type: ignore[arg-type]
    assert not odd, f"gradients are not finite in {', '.join(odd[:5])}"
    assert any(weight.grad.any() for _, weight in named), "all gradients are zero"  # type: ignore[union-attr]
    return f"{parameters(network):,} parameters, {seconds:.2f} s of CPU"


def _odd_sizes(network: nn.Module, subject: Subject) -> str:
    if subject.card.fixed_size:
        return "not checked: fixed_size"
    network.eval()
    shown = []
    for size in ODD_SIZES[subject.task.spatial_dims]:
        x = _input(subject, size, batch=1)
        asked = "x".join(map(str, x.shape[2:]))
        try:
            with torch.no_grad():
                logits = first(network(x))
        except MedplatError:
            shown.append(f"{asked} refused")
            continue
        wanted = _wanted_shape(subject.task, x)
        assert tuple(logits.shape) == wanted, f"{tuple(x.shape)} gave {tuple(logits.shape)}"
        assert torch.isfinite(logits).all(), f"logits are not finite for {tuple(x.shape)}"
        shown.append(asked)
    return ", ".join(shown)


def _trained(network: nn.Module, subject: Subject) -> list[tuple[str, nn.Parameter]]:
    """The parameters that training must reach: not the frozen ones, not those of `CARD.unused`."""
    return [
        (key, weight)
        for key, weight in network.named_parameters()
        if weight.requires_grad
        and not any(fnmatchcase(key, pattern) for pattern in subject.card.unused)
    ]


def _learns(network: nn.Module, subject: Subject) -> str:
    """Eight steps on one batch must lower the loss: logits, gradients and shapes fit together."""
    x = _input(subject)
    truth = torch.randint(0, subject.task.out_channels, _wanted_shape(subject.task, x)[:1])
    if subject.task.kind == "segment":
        truth = (x.mean(1) > 0).long()
    optimizer = torch.optim.Adam(network.train().parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        logits = first(network(x))
        restore = subject.task.kind == "restore"
        loss = (logits - x.flip(1)).abs().mean() if restore else F.cross_entropy(logits, truth)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-3:]) < losses[0], f"the loss went from {losses[0]:.3f} to {losses[-1]:.3f}"
    return f"{losses[0]:.2f} to {losses[-1]:.2f}"


def _alive(network: nn.Module, subject: Subject) -> str:
    """Within four steps every parameter has a gradient; layers that start at zero take two."""
    x = _input(subject)
    dead = dict(_trained(network, subject))
    optimizer = torch.optim.Adam(network.train().parameters(), lr=3e-3)
    for step in range(1, 5):
        optimizer.zero_grad()
        _total((one - 1) for one in _outputs(network(x))).backward()  # type: ignore[no-untyped-call]
        dead = {
            key: one for key, one in dead.items() if one.grad is None or not bool(one.grad.any())
        }
        if not dead:
            return f"after {step}"
        optimizer.step()
    raise AssertionError(f"no gradient but zero reaches {', '.join(list(dead)[:5])}")


def _outputs(output: Any) -> list[torch.Tensor]:
    return [output] if isinstance(output, torch.Tensor) else list(output)


def _total(outputs: Iterable[torch.Tensor]) -> torch.Tensor:
    """A scalar that hangs on every output."""
    return torch.stack([one.square().mean() for one in outputs]).sum()


def _other_size(network: nn.Module, subject: Subject) -> str:
    """Trained at one size, asked at another."""
    if subject.card.fixed_size:
        return "not checked: fixed_size"
    optimizer = torch.optim.Adam(network.train().parameters(), lr=1e-3)
    _total(_outputs(network(_input(subject)))).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    usual = SIZES[subject.task.spatial_dims]
    x = _input(subject, tuple(2 * side for side in usual), batch=1)
    with torch.no_grad():
        logits = first(network.eval()(x))
    wanted = _wanted_shape(subject.task, x)
    assert tuple(logits.shape) == wanted, f"{tuple(x.shape)} gave {tuple(logits.shape)}"
    assert torch.isfinite(logits).all(), f"logits are not finite for {tuple(x.shape)}"
    return "x".join(map(str, x.shape[2:]))


def _repeats(network: nn.Module, subject: Subject) -> str:
    """The same seed gives the same weights, and the same step of training, bit for bit."""
    x = _input(subject)
    found = []
    for _ in range(2):
        with _seeded(3):
            again = subject.build().train()
            start = {key: value.clone() for key, value in again.state_dict().items()}
            _total(_outputs(again(x))).backward()  # type: ignore[no-untyped-call]
        found.append((start, {key: one.grad for key, one in again.named_parameters()}))
    (one, steps), (other, other_steps) = found
    differing = [key for key in one if not torch.equal(one[key], other[key])]
    assert not differing, f"one seed, two starts: {', '.join(differing[:5])}"
    differing = [
        key
        for key, grad in steps.items()
        if grad is not None and not torch.equal(grad, cast(torch.Tensor, other_steps[key]))
    ]
    assert not differing, f"one seed, two gradients: {', '.join(differing[:5])}"
    return ""


def _half(network: nn.Module, subject: Subject) -> str:
    x = _input(subject, batch=1)
    network.eval()
    with torch.no_grad():
        exact = first(network(x))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = first(network(x)).float()
    assert torch.isfinite(logits).all(), "logits are not finite in bfloat16"
    off = ((logits - exact).norm() / exact.norm()).item()
    assert off < HALF_TOLERANCE, f"bfloat16 moves the logits by {off:.2g} of their norm"
    return f"within {off:.1g}"


def _save_and_load(network: nn.Module, subject: Subject) -> str:
    """Through safetensors into a second network of other random weights: equal logits."""
    x = _input(subject, batch=1)
    odd = [key for key, value in network.state_dict().items() if not torch.is_tensor(value)]
    assert not odd, f"the state dict holds what is no tensor and needs a pickle: {', '.join(odd)}"
    state = {key: value.contiguous().clone() for key, value in network.state_dict().items()}
    with _seeded(1):
        other = subject.build()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        save_file(state, str(path))
        other.load_state_dict(load_file(str(path)), strict=True)
    with torch.no_grad():
        same = torch.equal(first(network.eval()(x)), first(other.eval()(x)))
    assert same, "logits differ after saving and loading: something is not in the state dict"
    return f"{len(state)} tensors"


NETWORK_CHECKS: dict[str, Check] = {
    "forward": _forward,
    "batch of one": _batch,
    "finite gradients": _gradients,
    "odd sizes": _odd_sizes,
    "every parameter is alive": _alive,
    "another size after training": _other_size,
    "learns": _learns,
    "one seed, one result": _repeats,
    "bfloat16": _half,
    "save and load": _save_and_load,
}
