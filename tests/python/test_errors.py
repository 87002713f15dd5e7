"""Errors in Python: one class for each C++ code, with the same parts, wherever they are raised."""

import math
import pickle

import flexact
import pytest
from flexact import ActivationRegistry, Function, errors

BUILT_IN = {
    "InvalidArgument": ValueError,
    "ConfigError": ValueError,
    "ExpressionError": ValueError,
    "Unsupported": NotImplementedError,
    "DeviceError": RuntimeError,
    "IoError": OSError,
    "InternalError": RuntimeError,
}


@pytest.mark.parametrize("name", BUILT_IN)
def test_class_is_the_library_s_and_the_built_in_one(name):
    kind = getattr(flexact, name)
    assert issubclass(kind, flexact.Error)
    assert issubclass(kind, BUILT_IN[name])
    assert kind("wrong").code == name


def test_every_class_is_exported():
    assert set(errors.__all__) == {*BUILT_IN, "Error"}
    assert set(errors.__all__) <= set(flexact.__all__)


def test_text_is_composed_of_the_parts_that_are_there():
    full = flexact.ConfigError("NaN is not allowed", "/activation_params/beta", "any finite number")
    assert str(full) == "/activation_params/beta: NaN is not allowed (any finite number)"
    assert str(flexact.IoError("cannot open")) == "cannot open"


@pytest.mark.parametrize("name", BUILT_IN)
def test_pickle_keeps_class_and_parts(name):
    error = getattr(flexact, name)("message", "/where", "hint")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (again.message, again.where, again.hint) == ("message", "/where", "hint")
    assert str(again) == str(error)


def test_expression_error_names_the_column():
    with pytest.raises(flexact.ExpressionError, match=r"column") as caught:
        Function.expression("x * sigmoid(")
    assert "column" in caught.value.where


def test_unknown_name_is_a_config_error_with_a_suggestion():
    with pytest.raises(flexact.ConfigError, match="silu"):
        ActivationRegistry.get_activation("SiLU")


def test_value_outside_its_domain_is_a_config_error():
    with pytest.raises(flexact.ConfigError, match="limit"):
        ActivationRegistry.get_activation("swiglu_clamp", {"limit": -1.0})


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, True, "1.5", None, [1.0], {"per_layer": 3}, {}, {"a": 1}]
)
def test_value_that_is_no_finite_number_or_form_is_refused(value):
    with pytest.raises(flexact.ConfigError, match="beta"):
        ActivationRegistry.get_activation("swish", {"beta": value})


def test_missing_file_is_an_io_error(tmp_path):
    with pytest.raises(flexact.IoError):
        flexact.resolve_config(tmp_path / "nowhere")


def test_unknown_backend_and_target_say_what_is_known():
    with pytest.raises(flexact.InvalidArgument, match="torch"):
        Function.named("silu").emit("fortran")


def test_wrong_python_types_are_type_errors_and_leave_the_process_alive():
    with pytest.raises(TypeError):
        Function.named(3)
    with pytest.raises(TypeError):
        ActivationRegistry.get_activation("swish", 1.5)
