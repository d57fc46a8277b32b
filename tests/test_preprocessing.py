"""Preprocessing (appendix A) against its formula, at its edges, and under differentiation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from l2l_kit.errors import UnknownNameError
from l2l_kit.optimizers import Identity, LogSign, LSTMRule, Scale
from l2l_kit.optimizers.preprocessing import make_preprocessing

PREPROCESSINGS = [Identity(), Scale(), Scale(factor=0.25), LogSign(), LogSign(p=3.0)]
every_preprocessing = pytest.mark.parametrize("preprocessing", PREPROCESSINGS, ids=str)
hold = settings(deadline=None, max_examples=200)
float32s = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=True)


def formula(gradient, p):
    """Appendix A, word for word, in Python's own numbers."""
    if abs(gradient) >= math.exp(-p):
        return math.log(abs(gradient)) / p, math.copysign(1, gradient)
    return -1.0, math.exp(p) * gradient


def features(preprocessing, *gradients, dtype=torch.float32):
    return preprocessing(torch.tensor(gradients, dtype=dtype))


def edges(p):
    """Around the case distinction at e^-p, and the ends of the numbers."""
    edge = math.exp(-p)
    near = [edge, math.nextafter(edge, 0), math.nextafter(edge, 1), edge * (1 - 1e-6), edge * (1 + 1e-6)]
    far = [0.0, 1.0, 0.5, 7.0, 1e38, 3.4e38, 1.2e-38, 1e-40, 1.4e-45]
    return [sign * value for value in near + far for sign in (1, -1)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("p", [10.0, 3.0, 80.0])
def test_log_sign_equals_its_formula_at_the_edges(p, dtype, tolerance):
    gradients = torch.tensor(edges(p), dtype=dtype)
    expected = torch.tensor([formula(gradient, p) for gradient in gradients.tolist()], dtype=dtype).T
    torch.testing.assert_close(LogSign(p)(gradients), expected, rtol=tolerance, atol=tolerance)


@hold
@given(gradient=float32s, p=st.floats(0.5, 80))
def test_log_sign_equals_its_formula(gradient, p):
    found = features(LogSign(p), gradient)[:, 0].tolist()
    assert found == pytest.approx(formula(gradient, p), rel=1e-5, abs=1e-5)


@hold
@given(gradient=float32s, p=st.floats(0.5, 80))
def test_log_sign_is_odd_in_the_sign_and_even_in_the_size(gradient, p):
    (size, sign), (size_of_negative, sign_of_negative) = features(LogSign(p), gradient, -gradient).T.tolist()
    assert size == size_of_negative
    assert sign == -sign_of_negative


@hold
@given(gradients=st.lists(float32s, min_size=2, max_size=9), p=st.floats(0.5, 80))
def test_log_sign_keeps_its_bounds_and_the_order(gradients, p):
    size, sign = features(LogSign(p), *sorted(gradients))
    assert (size >= -1 - 1e-6).all()
    assert (sign.abs() <= 1).all()
    assert (sign.diff() >= 0).all()


@hold
@given(gradient=float32s, factor=st.floats(1e-3, 1e3))
def test_scale_is_a_product_and_identity_is_none(gradient, factor):
    assert features(Identity(), gradient).item() == gradient
    assert torch.equal(features(Scale(factor), gradient), torch.tensor([[gradient]]) * factor)


@every_preprocessing
class TestEveryPreprocessing:
    def test_shape_and_type(self, preprocessing):
        for dtype in (torch.float32, torch.float64):
            found = features(preprocessing, 0.1, -2.0, 0.0, dtype=dtype)
            assert found.shape == (preprocessing.features, 3)
            assert found.dtype == dtype

    def test_looks_at_each_coordinate_alone(self, preprocessing):
        gradients = [0.0, 1e-6, -1e-3, 2.0]
        alone = [features(preprocessing, gradient) for gradient in gradients]
        assert torch.equal(features(preprocessing, *gradients), torch.cat(alone, dim=1))

    def test_does_not_change_its_input(self, preprocessing):
        gradients = torch.tensor([0.0, -1e-6, 3.0])
        before = gradients.clone()
        preprocessing(gradients)
        assert torch.equal(gradients, before)

    def test_can_be_differentiated(self, preprocessing):
        gradients = torch.tensor([2.0, -0.3, 1e-7, -1e-6, 0.0], dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(preprocessing, gradients, eps=1e-9, atol=1e-4)

    @pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, math.exp(-10), -math.exp(-10), 1e38, -3.4e38])
    def test_has_no_nan_in_its_derivatives(self, preprocessing, value):
        gradients = torch.tensor([value], requires_grad=True)
        (first,) = torch.autograd.grad(preprocessing(gradients).sum(), gradients, create_graph=True)
        assert first.isfinite().all()
        if first.requires_grad:
            (second,) = torch.autograd.grad(first.sum(), gradients)
            assert second.isfinite().all()

    def test_is_made_again_from_its_configuration(self, preprocessing):
        assert make_preprocessing(preprocessing.config()) == preprocessing
        assert make_preprocessing(preprocessing) is preprocessing


@pytest.mark.parametrize(("name", "kind"), [("none", Identity), ("scale", Scale), ("log-sign", LogSign)])
def test_is_made_by_name(name, kind):
    assert make_preprocessing(name) == kind()
    assert LSTMRule(preprocessing=name).preprocessing == kind()


@pytest.mark.parametrize(
    ("name", "near"), [("log_sign", "log-sign"), ("logsign", "log-sign"), ("Scale", "scale"), ("non", "none")]
)
def test_an_unknown_name_gives_the_near_match(name, near):
    with pytest.raises(UnknownNameError, match=f"unknown preprocessing '{name}'. Did you mean '{near}'"):
        LSTMRule(preprocessing=name)


@pytest.mark.parametrize("p", [0, -1, 81, math.nan, math.inf])
def test_log_sign_refuses_a_p_that_makes_no_sense(p):
    with pytest.raises(ValueError, match=r"p must lie in \(0, 80\]"):
        LogSign(p)


@pytest.mark.parametrize("factor", [0, -1, math.nan, math.inf])
def test_scale_refuses_a_factor_that_makes_no_sense(factor):
    with pytest.raises(ValueError, match="factor must be a positive number"):
        Scale(factor)
