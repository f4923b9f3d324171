import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_scaling import metrics
from ldm_scaling.checkpoint import names
from ldm_scaling.encoders import LpipsBackbone
from ldm_scaling.encoders.lpips_backbones import BACKBONES
from ldm_scaling.evaluation import Lpips
from ldm_scaling.sharding import make_mesh
from tests.golden_makers._seeded import backbone_state


@pytest.fixture(scope="module")
def params():
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    template = jax.eval_shape(LpipsBackbone("alex").init, jax.random.key(0), image)["params"]
    return names.from_file(template, backbone_state("alex"), "alex")


def test_pairs_keep_their_order_on_any_number_of_devices(params):
    rng = np.random.default_rng(0)
    images, others = rng.integers(0, 256, (2, 11, 32, 40, 3)).astype(np.uint8)
    others[4] = images[4]
    heads = [np.full(stage[-1].channels, 0.1, np.float32) for stage in BACKBONES["alex"].stages]

    @jax.jit
    def expected(images, others):
        taps = [LpipsBackbone().apply({"params": params}, x / 127.5 - 1) for x in (images, others)]
        return metrics.lpips_distance(*taps, heads)

    all_pairs = np.asarray(
        expected(jnp.asarray(images, jnp.float32), jnp.asarray(others, jnp.float32))
    )
    assert all_pairs[4] < 1e-12
    assert all_pairs.std() > 1e-3
    for batch_size, mesh in ((4, None), (8, make_mesh())):
        found = Lpips(params, "alex", heads, batch_size, mesh)(images, others)
        np.testing.assert_allclose(found, all_pairs, rtol=1e-5, atol=1e-7)
