"""Similarity attention against its definition, and against torch's attention where they meet."""

from __future__ import annotations

import attention_gates as gates
import pytest
import torch
from torch.nn import functional as F

from medplat_kernels import similarity_attention
from medplat_kernels.similarity_attention.reference import similarity_attention_reference


def inputs(texts, tokens, width=64, shared=True, batch=3, dtype=torch.float32):
    torch.manual_seed(0)
    t = torch.randn(*(() if shared else (batch,)), texts, width).to(dtype)
    return [t * 7, torch.randn(batch, tokens, width).to(dtype), torch.tensor([0.07])]


@pytest.mark.parametrize(("texts", "tokens"), [(1, 1), (1, 2), (3, 17), (14, 50), (65, 5)])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_equals_the_reference(texts, tokens, shared, masked):
    """One image of three has every token masked."""
    mask = None
    if masked:
        mask = torch.rand(3, tokens, generator=torch.Generator().manual_seed(1)) > 0.3
        mask[1] = False
    t, v, temperature = inputs(texts, tokens, shared=shared)
    logit, cosines = similarity_attention(t, v, temperature, mask=mask)
    assert logit.shape == (3, texts)
    assert cosines.shape == (3, texts, tokens)
    if tokens == 1:  # the softmax has nothing to choose: gradients of it are zero
        assert torch.allclose(cosines[..., 0] * (logit != 0), logit, atol=1e-6)
        return
    gates.check(
        lambda *x: similarity_attention(*x, mask=mask),
        lambda *x: similarity_attention_reference(*x, mask=mask),
        [t, v, temperature],
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_give_float32_sums(dtype):
    t, v, temperature = inputs(5, 33, dtype=dtype)
    gates.check(
        lambda t, v: similarity_attention(t, v, 0.07),
        lambda t, v: similarity_attention_reference(t, v, 0.07),
        [t, v],
    )
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert [x.dtype for x in similarity_attention(t, v, temperature)] == [wide, wide]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert similarity_attention(t, v, temperature)[1].dtype == wide


@pytest.mark.parametrize("temperature", [1.0, 0.07, 0.004])
def test_pooling_is_torchs_attention_with_values_as_keys(temperature):
    """unit(SDPA(t^, v^, v^, scale 1/temperature)), and its closed form for the score."""
    t, v, _ = (x.double() for x in inputs(4, 30))
    logit, cosines = similarity_attention(t, v, temperature)
    texts, tokens = F.normalize(t, dim=-1).expand(3, -1, -1), F.normalize(v, dim=-1)
    pooled = F.scaled_dot_product_attention(texts, tokens, tokens, scale=1 / temperature)
    assert gates.error(logit, (texts * F.normalize(pooled, dim=-1)).sum(-1)) < 1e-12
    weights = (cosines / temperature).softmax(-1)
    assert gates.error(logit, (weights * cosines).sum(-1) / pooled.norm(dim=-1)) < 1e-12
    wanted = F.cosine_similarity(t[None, :, None], v[:, None], dim=-1)
    assert gates.error(cosines, wanted) < 1e-12


def test_rows_of_zeros_stay_zero_and_get_no_gradient():
    t, v, temperature = inputs(3, 6)
    t[1], v[:, 2] = 0, 0
    gates.check(similarity_attention, similarity_attention_reference, [t, v, temperature])
    (_, cosines), (dt, dv, _) = gates.run(similarity_attention, [t, v, temperature])
    for x in (cosines[:, 1], cosines[:, :, 2], dt[1], dv[:, 2]):
        assert not x.any()


def test_views_and_types_that_differ():
    t, v, temperature = inputs(3, 6)
    turned = v.mT.contiguous().mT
    for one, other in zip(
        similarity_attention(t.bfloat16(), turned, temperature.exp().log()),
        similarity_attention(t.bfloat16().float(), v, temperature.exp().log()),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_gradcheck_and_compile():
    t, v, temperature = (x.double() * 0.5 for x in inputs(2, 3, width=4))
    small = [t.requires_grad_(), v.requires_grad_(), temperature.requires_grad_()]
    for function in (similarity_attention_reference, similarity_attention):
        assert torch.autograd.gradcheck(function, small)
    gates.compiled(lambda t, v, s: similarity_attention(t, v.sin(), s.exp()), inputs(3, 9))


@pytest.mark.parametrize("tests", [gates.QUICK, pytest.param(None, marks=pytest.mark.slow)])
def test_opcheck(tests):
    t, v, temperature = inputs(3, 9)
    leaves = [x.requires_grad_() for x in (t[None], v, temperature[0])]
    op = torch.ops.medplat.similarity_attention_forward.default
    arguments = (*leaves, torch.ones(3, 9, dtype=torch.bool), "")
    torch.library.opcheck(op, arguments, **({"test_utils": tests} if tests else {}))


@pytest.mark.parametrize(("texts", "tokens"), [(0, 4), (3, 0), (0, 0)])
def test_nothing_in_nothing_out(texts, tokens):
    t, v, _ = (x.requires_grad_() for x in inputs(texts, tokens))
    logit, cosines = similarity_attention(t, v, 0.1)
    assert logit.shape == (3, texts)
    assert cosines.shape == (3, texts, tokens)
    assert not logit.any()
    (logit.sum() + cosines.sum()).backward()
    assert not t.grad.any()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"t": torch.zeros(3, 65)}, "does not fit v"),
        ({"t": torch.zeros(2, 3, 64)}, "does not fit v"),
        ({"t": torch.zeros(64)}, r"t must be \(T, D\)"),
        ({"t": torch.zeros(3, 64, dtype=torch.int64)}, "must be floating"),
        ({"mask": torch.ones(3, 9)}, "mask must be bool"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"temperature": torch.ones(2)}, "one element"),
    ],
)
def test_refuses_in_one_sentence(change, said):
    t, v, temperature = inputs(3, 9)
    with pytest.raises(ValueError, match=said):
        similarity_attention(**{"t": t, "v": v, "temperature": temperature, **change})
