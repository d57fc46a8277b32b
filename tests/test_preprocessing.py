"""Preprocessing (appendix A) against its formula, at its edges, and under differentiation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from l2l_kit.optimizers import Identity, LogSign, Scale
from l2l_kit.optimizers.preprocessing import make_preprocessing

PREPROCESSINGS = [Identity(), Scale(factor=0.25), LogSign(), LogSign(p=3.0)]


def formula(gradient, p):
    """Appendix A, word for word, in Python's own numbers."""
    if abs(gradient) >= math.exp(-p):
        return math.log(abs(gradient)) / p, math.copysign(1, gradient)
    return -1.0, math.exp(p) * gradient


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("p", [10.0, 3.0, 80.0])
def test_log_sign_equals_its_formula_at_the_edges(p, dtype, tolerance):
    """Around the case distinction at e^-p, and at the ends of the numbers."""
    edge = math.exp(-p)
    near = [edge, math.nextafter(edge, 0), math.nextafter(edge, 1), edge * (1 - 1e-6), edge * (1 + 1e-6)]
    sizes = torch.tensor([*near, 0.0, 1.0, 0.5, 7.0, 1e38, 3.4e38, 1.2e-38, 1e-40, 1.4e-45], dtype=dtype)
    gradients = torch.cat([sizes, -sizes])
    expected = torch.tensor([formula(gradient, p) for gradient in gradients.tolist()], dtype=dtype).T
    torch.testing.assert_close(LogSign(p)(gradients), expected, rtol=tolerance, atol=tolerance)


@settings(deadline=None, max_examples=200)
@given(
    gradients=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=9),
    p=st.floats(0.5, 80),
)
def test_log_sign_equals_its_formula_and_keeps_its_bounds_order_and_symmetry(gradients, p):
    row = torch.tensor(sorted(gradients))
    size, sign = LogSign(p)(row)
    expected = torch.tensor([formula(gradient, p) for gradient in row.tolist()]).T
    torch.testing.assert_close(torch.stack([size, sign]), expected, rtol=1e-5, atol=1e-5)
    assert (size >= -1 - 1e-6).all()
    assert (sign.abs() <= 1).all()
    assert (sign.diff() >= 0).all()
    assert torch.equal(LogSign(p)(-row), torch.stack([size, -sign]))


def test_scale_is_a_product_and_identity_is_none():
    row = torch.tensor([0.1, -3e8, 0.0])
    assert torch.equal(Scale(factor=0.25)(row), row[None] * 0.25)
    assert torch.equal(Identity()(row), row[None])


@pytest.mark.parametrize("preprocessing", PREPROCESSINGS, ids=str)
class TestEveryPreprocessing:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_looks_at_each_coordinate_alone_and_changes_nothing(self, preprocessing, dtype):
        gradients = torch.tensor([0.0, 1e-6, -1e-3, 2.0], dtype=dtype)
        before, found = gradients.clone(), preprocessing(gradients)
        assert torch.equal(gradients, before)
        assert (found.shape, found.dtype) == ((preprocessing.features, 4), dtype)
        assert torch.equal(found, torch.cat([preprocessing(one[None]) for one in gradients], dim=1))

    def test_can_be_differentiated(self, preprocessing):
        gradients = torch.tensor([2.0, -0.3, 1e-7, -1e-6, 0.0], dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(preprocessing, gradients, eps=1e-9, atol=1e-4)

    def test_has_no_nan_in_its_derivatives(self, preprocessing):
        edge = math.exp(-10)
        gradients = torch.tensor([0.0, -0.0, 1e-45, edge, -edge, 1e38, -3.4e38], requires_grad=True)
        (first,) = torch.autograd.grad(preprocessing(gradients).sum(), gradients, create_graph=True)
        assert first.isfinite().all()
        if first.requires_grad:
            assert torch.autograd.grad(first.sum(), gradients)[0].isfinite().all()

    def test_is_made_again_from_its_configuration_its_name_or_itself(self, preprocessing):
        assert make_preprocessing(preprocessing.config()) == preprocessing
        assert make_preprocessing(preprocessing) is preprocessing
        assert make_preprocessing(preprocessing.name) == type(preprocessing)()


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_numbers_that_make_no_sense_are_refused(value):
    with pytest.raises(ValueError, match=r"p must lie in \(0, 80\]"):
        LogSign(value)
    with pytest.raises(ValueError, match="factor must be a positive number"):
        Scale(value)
