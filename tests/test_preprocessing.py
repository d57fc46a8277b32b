"""Preprocessing (appendix A) against its formula, at its edges, and under differentiation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from l2l_kit.optimizers import Identity, LogSign, Scale
from l2l_kit.optimizers.preprocessing import make_preprocessing


def test_constants_are_those_of_appendix_a():
    assert (LogSign().p, Scale().factor) == (10, 100)


def formula(gradients, p):
    """Appendix A, word for word, in Python's own numbers."""
    return torch.tensor(
        [
            (math.log(abs(g)) / p, math.copysign(1, g)) if abs(g) >= math.exp(-p) else (-1.0, math.exp(p) * g)
            for g in gradients.tolist()
        ],
        dtype=gradients.dtype,
    ).T


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("p", [10.0, 3.0, 80.0])
def test_log_sign_equals_its_formula_at_the_edges(p, dtype, tolerance):
    """Around the case distinction at e^-p, and at the ends of the numbers."""
    edge = math.exp(-p)
    near = [edge, math.nextafter(edge, 0), math.nextafter(edge, 1), edge * (1 - 1e-6), edge * (1 + 1e-6)]
    sizes = torch.tensor([*near, 0.0, 1.0, 0.5, 7.0, 1e38, 3.4e38, 1.2e-38, 1e-40, 1.4e-45], dtype=dtype)
    gradients = torch.cat([sizes, -sizes])
    torch.testing.assert_close(LogSign(p)(gradients), formula(gradients, p), rtol=tolerance, atol=tolerance)


@settings(deadline=None, max_examples=200)
@given(
    gradients=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=9),
    p=st.floats(0.5, 80),
)
def test_log_sign_equals_its_formula_and_keeps_its_bounds_order_and_symmetry(gradients, p):
    row = torch.tensor(sorted(gradients))
    size, sign = LogSign(p)(row)
    torch.testing.assert_close(torch.stack([size, sign]), formula(row, p), rtol=1e-5, atol=1e-5)
    assert (size >= -1 - 1e-6).all()
    assert (sign.abs() <= 1).all()
    assert (sign.diff() >= 0).all()
    assert torch.equal(LogSign(p)(-row), torch.stack([size, -sign]))


@pytest.mark.parametrize("preprocessing", [Identity(), Scale(factor=0.25), LogSign(), LogSign(p=3.0)], ids=str)
def test_every_preprocessing_looks_at_each_coordinate_alone_and_can_be_differentiated(preprocessing):
    gradients = torch.tensor([2.0, -0.3, 1e-7, -1e-6, 0.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(preprocessing, gradients, eps=1e-9, atol=1e-4)
    found = preprocessing(gradients)
    assert (found.shape, found.dtype) == ((preprocessing.features, 5), torch.float64)
    assert torch.equal(found, torch.cat([preprocessing(one[None]) for one in gradients], dim=1))
    edge = math.exp(-10)
    ends = torch.tensor([0.0, -0.0, 1e-45, edge, -edge, 1e38, -3.4e38], requires_grad=True)
    (first,) = torch.autograd.grad(preprocessing(ends).sum(), ends, create_graph=True)
    assert first.isfinite().all()
    if first.requires_grad:
        assert torch.autograd.grad(first.sum(), ends)[0].isfinite().all()
    for choice in (preprocessing, preprocessing.config()):
        assert make_preprocessing(choice) == preprocessing
    assert make_preprocessing(preprocessing.name) == type(preprocessing)()


def test_scale_is_a_product_and_identity_is_none():
    row = torch.tensor([0.1, -3e8, 0.0])
    assert torch.equal(Scale(factor=0.25)(row), row[None] * 0.25)
    assert torch.equal(Identity()(row), row[None])


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_numbers_that_make_no_sense_are_refused(value):
    for kind in (LogSign, Scale):
        with pytest.raises(ValueError, match=r"p must lie in|factor must be a positive number"):
            kind(value)
