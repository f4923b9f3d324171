import numpy as np
import pytest

from ldm_scaling import metrics
from ldm_scaling.evaluation import (
    Evaluator,
    Lite0,
    Protocol,
    Reference,
    TextEncoder,
    feature_scores,
    score,
)
from ldm_scaling.evaluation.protocol import load_split

SIZE, CAPTION_SIZE = 20, 8


def pairs(rng, count, shift=0.0):
    """Features that tell their captions, as real images do."""
    captions = rng.normal(size=(count, CAPTION_SIZE))
    mixing = np.random.default_rng(5).normal(size=(CAPTION_SIZE, SIZE))
    noise = rng.normal(size=(count, SIZE))
    return (captions @ mixing + noise + shift).astype(np.float32), captions


@pytest.fixture(scope="module")
def bench():
    features, captions = pairs(np.random.default_rng(0), 200)
    return Reference.of(features), metrics.fit_alignment(features, captions)


def test_scores_are_the_metrics_of_the_features(bench):
    reference, alignment = bench
    features, captions = pairs(np.random.default_rng(1), 60, shift=0.3)
    found = score(features, captions, reference, alignment, resamples=100)
    real = reference.features
    expected = {
        "fd_lite0": metrics.frechet_from_features(features, real),
        "kd_lite0": metrics.kernel_distance(features, real).value,
        "precision_lite0": metrics.precision_recall(features, real).precision,
        "recall_lite0": metrics.precision_recall(features, real).recall,
        "alignment_lite0_minilm": alignment.scores(features, captions).mean(),
    }
    assert {name: metric.value for name, metric in found.items()} == pytest.approx(expected)
    for name, metric in found.items():
        assert metric.level == 0.95
        assert metric.low < metric.value < metric.high, name
    again = score(features, captions, reference, alignment, resamples=100)
    assert dict(again) == dict(found)


def test_worse_images_score_worse_beyond_the_intervals(bench):
    reference, alignment = bench
    good = score(*pairs(np.random.default_rng(2), 100), *bench)
    features, captions = pairs(np.random.default_rng(3), 100, shift=4.0)
    bad = score(features, captions[::-1].copy(), reference, alignment)
    for name in ("fd_lite0", "kd_lite0"):
        assert good[name].high < bad[name].low
    for name in ("precision_lite0", "recall_lite0", "alignment_lite0_minilm"):
        assert good[name].low > bad[name].high


def test_features_do_not_depend_on_what_else_is_in_the_batch(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3)).astype(np.uint8)
    lite0 = Lite0(32, batch_size=4)
    features = lite0.cached(images, tmp_path)
    assert features.shape == (5, 1280)
    np.testing.assert_allclose(lite0(images[4:]), features[4:], rtol=1e-4, atol=1e-4)
    (path,) = tmp_path.iterdir()
    np.save(path, features + 1)
    np.testing.assert_array_equal(lite0.cached(images, tmp_path), features + 1)
    lite0.cached(images[:4], tmp_path)  # other images are kept under another name
    assert len(list(tmp_path.iterdir())) == 2


def test_scores_of_another_network_carry_its_name(bench):
    reference, alignment = bench
    features, captions = pairs(np.random.default_rng(1), 60, shift=0.3)
    named = feature_scores(features, reference, "inception_clean", resamples=100)
    lite0 = score(features, captions, reference, alignment, resamples=100)
    assert set(named) == {f"{kind}_inception_clean" for kind in ("fd", "kd", "precision", "recall")}
    for name, metric in named.items():
        assert metric == lite0[name.replace("inception_clean", "lite0")]


@pytest.mark.slow
def test_alignment_is_worth_something_on_emoji_it_was_not_fitted_to(tmp_path):
    protocol = Protocol(num_samples=128, feature_size=96, resamples=50)
    evaluator = Evaluator(protocol, 32, TextEncoder.packaged(), tmp_path)
    worth = evaluator.calibration
    assert worth.count > 150
    assert worth.ranking > 0.88
    assert worth.top1 > 30 / worth.count
    assert worth.matched - worth.mismatched > 0.3
    real, count = evaluator.score_real()
    assert count == 128
    images, _ = load_split("noto_emoji", "train", False)
    fitted = np.stack([image[::2, ::2] for image in images[: protocol.num_samples]])
    noise = np.random.default_rng(0).integers(0, 256, fitted.shape).astype(np.uint8)
    assert evaluator.score(noise)["kd_lite0"].low > real["kd_lite0"].high
    wrong = evaluator.score(fitted)  # real emoji for other captions
    assert wrong["alignment_lite0_minilm"].high < real["alignment_lite0_minilm"].low
