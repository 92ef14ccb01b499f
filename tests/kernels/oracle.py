"""The slow way: all pixel pairs of two images in one array of four axes, with arccos, and no trick at all."""

import numpy as np


def golden_images():
    """The two images of the golden values, (2, 3, 5, 5)."""
    c, i, j = np.meshgrid(range(3), range(5), range(5), indexing="ij")
    x = np.sin(0.7 * (c + 1) * (i + 1) + 0.3 * (j + 1))
    return np.stack((x, np.cos(0.5 * (c + 1) * (j + 1) - 0.2 * (i + 1))))


def patch_sums(field, filter_size, stride, circular):
    """Sum (h, w, h', w') over patches that move by the same step in both images."""
    r = filter_size // 2
    wide = np.pad(field, r, mode="wrap" if circular else "constant")
    h, w, g, v = field.shape
    total = 0
    for a in range(filter_size):
        for b in range(filter_size):
            total = (
                total
                + wide[a : a + h, b : b + w, a : a + g, b : b + v][::stride, ::stride, ::stride, ::stride]
            )
    return total


def last_fields(x, z, strides, scales, filter_size=3, circular=False):
    """Return Θ before the readout, with the last layer's weight, and Σ (h, w, h', w')."""
    same = np.array_equal(x, z)
    sigma = [np.einsum("cij,ckl->ijkl", *pair) for pair in ((x, z), (x, x), (z, z))]
    sigma = [patch_sums(s, filter_size, strides[0], circular) for s in sigma]
    theta = scales[0] * sigma[0]
    for h in range(1, len(strides) + 1):
        variances = [np.einsum("ijij->ij", s) for s in sigma[1:]]
        new = []
        for s, (left, right) in zip(sigma, ((0, 1), (0, 0), (1, 1)), strict=True):
            norm = np.sqrt(variances[left][:, :, None, None] * variances[right])
            rho = np.divide(s, norm, out=np.zeros_like(s), where=norm > 0).clip(-1, 1)
            if left == right or same:
                i, j = np.indices(rho.shape[:2])
                rho[i, j, i, j] = norm[i, j, i, j] > 0
            angle = np.pi - np.arccos(rho)
            new.append(norm * (rho * angle + np.sqrt((1 - rho) * (1 + rho))) / (filter_size**2 * np.pi))
            if s is sigma[0]:
                theta = theta * angle / (filter_size**2 * np.pi)
        theta = theta + scales[h] * new[0]
        if h == len(strides):
            return theta, new[0]
        sigma = [patch_sums(s, filter_size, strides[h], circular) for s in new]
        theta = patch_sums(theta, filter_size, strides[h], circular)
    raise AssertionError


def read_out(field, readout, circular):
    """Average over the pixels (gap), or around each (a number), or not, and sum over what is left."""
    h, w = field.shape[:2]
    if readout == "gap":
        return field.mean()
    c = 0 if readout == "flatten" else readout
    total = 0.0
    for i in range(h):
        for j in range(w):
            at = [(i + a, j + b) for a in range(-c, c + 1) for b in range(-c, c + 1)]
            if circular:
                at = [(a % h, b % w) for a, b in at]
            at = [(a, b) for a, b in at if 0 <= a < h and 0 <= b < w]
            total += sum(field[p + q] for p in at for q in at) / (2 * c + 1) ** 4
    return total


def slow_cntk(x, z, *, depth, readout, scales, circular=False, filter_size=3, stride=1):
    """Return Θ and Σ of two images."""
    strides = [stride] * (depth - 1) if isinstance(stride, int) else stride
    fields = last_fields(x, z, strides, scales, filter_size, circular)
    return [read_out(field, readout, circular) for field in fields]
