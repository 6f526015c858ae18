"""Distances between the surfaces of two masks, as DeepMind's `surface-distance` defines them (Nikolov et al. 2018, arXiv
1809.04430): surface elements lie between voxel centres, and are weighted by their area in mm2."""

from functools import lru_cache

import numpy as np
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree
from skimage.measure import marching_cubes, mesh_surface_area

_MANY_POINTS = 1000  # from this number on, a distance transform of the whole box is faster than a tree of its surface


@lru_cache
def _surface_element_sizes(spacing_mm):
    """Returns the area in mm2 (2D: length in mm) of the surface element of each pattern of 2x2x2 (2x2) voxels, by its
    bit code.

    Areas come from marching cubes of the pattern. A pattern with more than half of its voxels set counts as its
    complement, which resolves the ambiguous patterns as surface-distance does.
    """
    corners = 2 ** len(spacing_mm)
    sizes = np.zeros(2**corners)
    for code in range(1, len(sizes) - 1):
        pattern = np.array([code >> i & 1 for i in range(corners)])
        if pattern.sum() > corners // 2:
            pattern = 1 - pattern
        if corners == 8:
            vertices, faces, _, _ = marching_cubes(
                pattern.reshape(2, 2, 2).astype(float), 0.5, spacing=spacing_mm, method="lorensen"
            )
            sizes[code] = mesh_surface_area(vertices, faces)
        else:
            (a, b), (c, d) = pattern.reshape(2, 2)
            diagonal = 0.5 * np.hypot(*spacing_mm)
            if pattern.sum() == 1:
                sizes[code] = diagonal
            elif a == d:
                sizes[code] = 2 * diagonal
            else:
                sizes[code] = spacing_mm[1] if a == b else spacing_mm[0]
    return sizes


def _surface(mask, sizes):
    """Returns the surface elements of a padded mask: positions (boolean), indices (N, dim), and sizes (N,)."""
    code = mask.view(np.uint8)
    for axis in range(mask.ndim):  # the bit of a corner: its offsets (dx, dy, dz) read as a binary number
        low, high = (code[(slice(None),) * axis + (part,)] for part in (slice(None, -1), slice(1, None)))
        code = low | high << 2 ** (mask.ndim - 1 - axis)
    where = (sizes > 0)[code]
    return where, np.argwhere(where), sizes[code[where]]


def _bounding_box(mask):
    """Returns the slices of the bounding box of all True voxels of an array; empty slices if there are none."""
    box, rest = [], mask
    for _ in range(mask.ndim):
        there = np.flatnonzero(rest.reshape(len(rest), -1).any(1))
        box.append(slice(there[0], there[-1] + 1) if len(there) else slice(0, 0))
        rest = rest.any(0)
    return tuple(box)


def surface_distances(prediction, truth, spacing_mm):
    """Computes distances between the surfaces of two boolean arrays (2D or 3D) of the same shape.

    Returns (distances_mm, sizes) of the elements of the truth's surface to the prediction's, then the same in the
    other direction: four 1D arrays. A distance to an empty mask is infinite; an empty mask has no elements.
    """
    sizes = _surface_element_sizes(tuple(float(s) for s in spacing_mm))
    box = _bounding_box(prediction | truth)
    surfaces = [_surface(np.pad(mask[box], 1), sizes) for mask in (truth, prediction)]
    result = []
    for (where, points, size), (other, others, _) in (surfaces, surfaces[::-1]):
        distances, apart = np.zeros(len(size)), ~other[where]  # an element of both surfaces is at distance 0
        if not len(others):
            distances[:] = np.inf
        elif np.count_nonzero(apart) > _MANY_POINTS:  # a poor prediction
            distances[apart] = distance_transform_edt(~other, spacing_mm)[where][apart]
        elif apart.any():
            tree = cKDTree(others * spacing_mm, balanced_tree=False, compact_nodes=False)
            nearest = others[tree.query(points[apart] * spacing_mm)[1]]
            steps = (points[apart] - nearest) * spacing_mm  # from whole voxels: no rounding of positions
            distances[apart] = np.sqrt((steps**2).sum(1))
        result += [distances, size]
    return result
