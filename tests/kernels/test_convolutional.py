"""The convolutional kernel: published conventions, an independent slow program, and the symmetries it has."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.oracle import golden_images, slow_cntk
from thalweg.errors import InputError
from thalweg.kernels import cntk, cntk_depths, ntk

# Convolutions, pair: flatten, gap with all trained, gap as published, NNGP with gap.
GOLDEN = """
1  xx 55.8687315307 0.522518964636 0 0.409828634007
1  xz 10.336938323 0.395905288705 0 0.36510785822
1  zz 54.8549421458 0.677850720285 0 0.480377891309
2  xx 67.072806422 0.71002673008 0.189534791654 0.434551138886
2  xz 16.6614014989 0.552641486548 0.137280825518 0.399824782363
2  zz 66.1897312864 0.822183441983 0.231003953439 0.462590656025
3  xx 72.7986853436 0.756535038783 0.304106665544 0.391181669302
3  xz 20.3798704551 0.598800068091 0.223427586566 0.36769548608
3  zz 72.1734956948 0.835982014991 0.34796008664 0.404031641643
10 xx 53.53819622 0.35029666171 0.225573182718 0.115852647873
10 xz 17.1037762164 0.281519174172 0.167338211952 0.114068399172
10 zz 53.1765400904 0.353154790043 0.228566939309 0.115322512201
"""
FORMS = ({"readout": "flatten"}, {"trained": "all"}, {}, {"kind": "nngp"})


def images(n, *shape, seed=0):
    return np.random.default_rng(seed).normal(size=(n, *shape))


def closeness(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


def test_the_golden_values():
    x = golden_images()
    for line in GOLDEN.split("\n")[1:-1]:
        layers, pair, *values = line.split()
        at = {"xx": (0, 0), "xz": (0, 1), "zz": (1, 1)}[pair]
        for form, value in zip(FORMS, values, strict=True):
            # twelve digits are given
            assert cntk(x, depth=int(layers) + 1, **form)[at] == pytest.approx(
                float(value), rel=1e-10, abs=1e-14
            )


CASES = {
    "plain": {},
    "odd sizes": {"shape": (2, 7, 6)},
    "one pixel": {"shape": (3, 1, 1)},
    "one row": {"shape": (1, 1, 9)},
    "wider than a vector": {"shape": (1, 3, 19)},
    "five by five filters": {"filter_size": 5},
    "filters larger than the image": {"filter_size": 7, "shape": (1, 3, 2)},
    "filters of one pixel": {"filter_size": 1},
    "circular": {"circular": True, "shape": (2, 4, 6)},
    "circular, large filters": {"circular": True, "filter_size": 5, "shape": (1, 4, 3)},
    "stride 2": {"stride": 2, "shape": (2, 7, 6)},
    "stride 2 once": {"stride": [1, 2, 1], "shape": (2, 5, 7)},
    "stride 3, then 2": {"stride": [3, 1, 2], "shape": (1, 11, 8), "filter_size": 5},
    "circular stride": {"stride": [1, 2, 1], "circular": True, "shape": (1, 4, 6)},
    "local averages": {"readout": 1, "shape": (1, 5, 4)},
    "circular local averages": {"readout": 2, "circular": True, "shape": (1, 4, 6)},
    "flatten": {"readout": "flatten"},
    "flatten with stride": {"readout": "flatten", "stride": 2, "shape": (1, 6, 5)},
}


@pytest.mark.parametrize("case", CASES)
def test_a_slow_program_with_four_axes_agrees(case):
    options = {"shape": (2, 5, 5), "readout": "gap", "circular": False, **CASES[case]}
    shape, circular = options.pop("shape"), options.pop("circular")
    x, z = images(2, *shape)
    scales = [0.5, 1.0, 2.0, 0.25]
    theta, sigma = slow_cntk(x, z, depth=4, scales=scales, circular=circular, **options)
    options |= {"depth": 4, "padding": "circular" if circular else "zeros"}
    for kernel, truth in (
        (cntk(x[None], z[None], trained=scales, **options), theta),
        (cntk(x[None], z[None], kind="nngp", **options), sigma),
    ):
        assert kernel.shape == (1, 1)
        assert kernel[0, 0] == pytest.approx(truth, rel=1e-12)


@pytest.mark.parametrize("side", [6, 12])  # one group of tiles, and three, which the pairs of a block share
def test_many_images_and_threads_give_the_same_bits_as_single_pairs(side):
    x, z = images(5, 2, side, side), images(9, 2, side, side, seed=1)
    whole = cntk(x, z, depth=5, threads=2)
    for i, j in itertools.product(range(5), range(9)):
        assert cntk(x[i : i + 1], z[j : j + 1], depth=5, threads=1)[0, 0] == whole[i, j]
    assert np.array_equal(cntk(x, depth=5), cntk(x, depth=5).T)
    assert cntk(x[:0], z, depth=5).shape == (0, 9)
    assert cntk(x, z[:0], depth=5).shape == (5, 0)


def test_several_depths_of_one_pass_are_those_of_many():
    x, z = images(2, 3, 5, 5), images(3, 3, 5, 5, seed=1)
    for form in FORMS:
        together = cntk_depths(x, z, depths=[6, 2, 3], **form)
        assert together.shape == (3, 2, 3)
        for depth, kernel in zip([6, 2, 3], together, strict=True):
            assert np.allclose(kernel, cntk(x, z, depth=depth, **form), rtol=1e-14, atol=0)


def natural(n, side, seed=0):
    """Images like photographs: smooth, with some noise, in float32."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    spectrum = rng.normal(size=(n, 3, side, side)) / (frequency + 1 / side)
    smooth = np.fft.ifft2(spectrum * np.exp(2j * np.pi * rng.uniform(size=spectrum.shape))).real
    smooth /= smooth.std()
    return (smooth + 0.1 * rng.normal(size=smooth.shape)).astype(np.float32)


@pytest.mark.parametrize("readout", ["gap", "flatten"])
@pytest.mark.parametrize("depth", [3, 11, 21])
def test_float32_has_six_digits_for_others_and_for_itself(readout, depth):
    x = natural(3, 16)
    exact = cntk(x.astype(np.float64), depth=depth, readout=readout)
    rough = cntk(x, depth=depth, readout=readout)
    assert rough.dtype == np.float32
    error = np.abs(rough / exact - 1)
    assert error.max() < 2e-6
    assert np.diag(error).max() < 1e-6


@pytest.mark.parametrize("what", ["noise", "shifted", "white", "constant", "dark"])
def test_float32_keeps_its_digits_where_correlations_come_near_one(what):
    x = natural(2, 12)
    noise = np.float32(1e-3) * natural(2, 12, seed=5)
    x[1] = {
        "noise": x[0] + noise[0],
        "shifted": np.roll(x[0], 1, axis=2) + noise[0],
        "white": np.where(np.arange(12) < 6, np.float32(3), x[1]),
        "constant": np.float32(1),
        "dark": np.where(np.arange(12) < 6, np.float32(0), x[1]),
    }[what]
    for readout in ("gap", "flatten"):
        exact = cntk(x.astype(np.float64), depth=11, readout=readout)
        assert np.abs(cntk(x, depth=11, readout=readout) / exact - 1).max() < 2e-6


def test_an_image_with_itself_is_the_same_however_it_is_asked_for():
    x = images(3, 2, 5, 5)
    alone, twice = cntk(x, depth=6), cntk(x, x.copy(), depth=6)
    assert closeness(twice, alone) < 1e-14
    exact = [slow_cntk(v, v, depth=6, readout="gap", scales=[0, 1, 1, 1, 1, 0])[0] for v in x]
    assert np.allclose(np.diag(twice), exact, rtol=1e-12, atol=0)


def test_black_images_and_black_borders():
    x = images(3, 1, 6, 6)
    x[0], x[1, :, :, :4] = 0, 0
    kernel = cntk(x, depth=5)
    assert np.isfinite(kernel).all()
    assert (kernel[0] == 0).all()
    assert kernel[1, 2] == pytest.approx(
        slow_cntk(x[1], x[2], depth=5, readout="gap", scales=[0, 1, 1, 1, 0])[0]
    )


options = st.fixed_dictionaries(
    {
        "depth": st.integers(2, 5),
        "readout": st.sampled_from(["gap", "flatten", 1]),
        "padding": st.sampled_from(["zeros", "circular"]),
        "kind": st.sampled_from(["ntk", "nngp"]),
        "trained": st.sampled_from(["paper", "all"]),
    }
)
shapes = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6))


@settings(max_examples=40, deadline=None)
@given(options, shapes, st.integers(0, 99))
def test_symmetry_homogeneity_and_positive_semidefiniteness(form, shape, seed):
    x = images(4, *shape, seed=seed)
    kernel = cntk(x, **form)
    assert np.allclose(kernel, cntk(x, x.copy(), **form).T, rtol=1e-12, atol=1e-14 * np.abs(kernel).max())
    factors = np.array([1e-30, 0.5, 3.0, 1e20])
    scaled = cntk(x * factors[:, None, None, None], **form)
    assert np.allclose(scaled, np.outer(factors, factors) * kernel, rtol=1e-12, atol=0)
    assert np.linalg.eigvalsh(kernel)[0] >= -1e-12 * np.trace(kernel)


@settings(max_examples=30, deadline=None)
@given(options, shapes, st.integers(0, 99), st.integers(0, 5), st.integers(0, 5))
def test_mirror_images_and_translations(form, shape, seed, down, right):
    x, z = images(2, *shape, seed=seed), images(3, *shape, seed=seed + 100)
    kernel = cntk(x, z, **form)
    small = 1e-14 * max(np.abs(kernel).max(), 1e-300)

    def equal(a, b):
        return np.allclose(a, b, rtol=1e-12, atol=small)

    for mirror in ((Ellipsis, slice(None, None, -1)), (Ellipsis, slice(None, None, -1), slice(None))):
        assert equal(cntk(x[mirror], z[mirror], **form), kernel)
    assert equal(cntk(x.swapaxes(2, 3), z.swapaxes(2, 3), **form), kernel)
    mirrored = z[..., ::-1]
    assert equal(cntk(x, z, flips=True, **form), (kernel + cntk(x, mirrored, **form)) / 2)
    together = np.concatenate((cntk(x, z, **form), cntk(x[..., ::-1], mirrored, **form)))
    assert equal(together[:2], together[2:])
    if form["padding"] == "circular":
        moved = np.roll(x, (down, right), axis=(2, 3))
        if form["readout"] == "gap":
            assert equal(cntk(moved, z, **form), kernel)
        assert equal(cntk(moved, np.roll(z, (down, right), axis=(2, 3)), **form), kernel)


def test_a_kernel_averaged_over_mirror_images_is_that_of_all_four():
    x = images(3, 2, 4, 5)
    four = [cntk(a, b, depth=4) for a in (x, x[..., ::-1]) for b in (x, x[..., ::-1])]
    assert np.allclose(cntk(x, depth=4, flips=True), sum(four) / 4, rtol=1e-13, atol=0)


def test_images_of_one_pixel_are_vectors():
    x, z = images(3, 4, 1, 1), images(2, 4, 1, 1, seed=1)
    # the only tap that counts is the middle one; each convolution divides by its nine
    for depth in (2, 3, 7):
        expected = ntk(x[:, :, 0, 0], z[:, :, 0, 0], depth=depth)
        kernel = cntk(x, z, depth=depth, readout="flatten")
        assert np.allclose(kernel * 9.0 ** (depth - 1), expected, rtol=1e-12, atol=0)


def test_the_kernel_is_linear_in_what_is_trained():
    x, z = images(2, 2, 4, 4), images(2, 2, 4, 4, seed=1)
    parts = [cntk(x, z, depth=4, trained=row) for row in np.eye(4)]
    weights = [3.0, 0.5, 0.0, 2.0]
    combined = sum(w * part for w, part in zip(weights, parts, strict=True))
    assert np.allclose(cntk(x, z, depth=4, trained=weights), combined, rtol=1e-12, atol=0)
    assert np.allclose(cntk(x, z, depth=4), parts[1] + parts[2], rtol=1e-12, atol=0)
    assert np.allclose(cntk(x, z, depth=4, trained="all"), sum(parts), rtol=1e-12, atol=0)
    assert (cntk(x, z, depth=2) == 0).all()


def test_a_local_average_over_all_circular_images_is_the_global_one():
    x, z = images(2, 1, 5, 5), images(2, 1, 5, 5, seed=1)
    local = cntk(x, z, depth=4, readout=2, padding="circular")
    assert np.allclose(local, 25 * cntk(x, z, depth=4, padding="circular"), rtol=1e-13, atol=0)
    flat = cntk(x, z, depth=4, readout="flatten", trained="all")
    assert np.allclose(cntk(x, z, depth=4, readout=0, trained="all"), flat, rtol=1e-15, atol=0)


def test_progress_tells_every_pair():
    class Notes:
        phases: list[str] = []  # noqa: RUF012
        last = (0.0, 0.0)

        def phase(self, label):
            self.phases.append(label)

        def advance(self, done, total):
            self.last = (done, total)

    notes = Notes()
    cntk(images(4, 1, 3, 3), depth=3, flips=True, progress=notes)
    assert notes.phases == ["pairs of images"]
    assert notes.last == (20, 20)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": np.zeros((3, 4, 4))}, r"shape of x .* got: \(3, 4, 4\); try: x\[None\]"),
        ({"x": np.zeros((3, 0, 4, 4))}, "shape of x"),
        ({"x": np.full((2, 1, 3, 3), np.nan)}, "NaN or infinity, first in example 0"),
        ({"x": np.array([["a"]])}, "no real numbers"),
        ({"z": np.zeros((1, 1, 3, 4))}, "differ in shape"),
        ({"depth": 1}, "depth of 2 or more"),
        ({"depth": [3, 4]}, "cntk_depths"),
        ({"readout": "max"}, "readout is unknown"),
        ({"readout": -1}, "readout is unknown"),
        ({"padding": "same"}, "padding is unknown"),
        ({"kind": "tangent"}, "kind of kernel"),
        ({"trained": "some"}, "trained is unknown"),
        ({"trained": [1, 1]}, "expected: 3 numbers"),
        ({"filter_size": 4}, "odd"),
        ({"stride": 0}, "stride"),
        ({"stride": [2]}, "strides do not fit"),
        ({"stride": 2, "padding": "circular"}, "cannot be cut"),
        ({"filter_size": 9, "padding": "circular"}, "more than once"),
        ({"stride": 2, "flips": True}, "stride of 1"),
        ({"dtype": np.float16}, "float32 or float64"),
        ({"threads": 0}, "threads"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        cntk(**{"x": np.ones((2, 1, 3, 3)), "depth": 3, **arguments})
