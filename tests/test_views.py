"""The view as a table, against the view as an operation and as dense matrices."""
import itertools

import numpy as np
import pytest
import torch

from recover.views import FIRST, LOWER, SHIFT, STOP, WEIGHT, View, apply_view, draw_view, tabulate

SIZES = (2, 7, 12, 33, 64)


def views_of(size):
    """Drawn ones, and edges: no window, the whole, single rows, columns, pixels, rolls beyond a turn."""
    rng = np.random.default_rng(size)
    kinds = [(signed, crop_flip) for signed in (False, True) for crop_flip in (True, True, True, False)]
    drawn = [draw_view(size, size // 2, *kind, rng) for kind in kinds for _ in range(6)]
    edge = size - 1
    windows = (None, (0, 0, size, size), (0, 0, 1, 1), (edge, edge, 1, 1), (0, edge, size, 1),
               (edge, 0, 1, size), (edge // 2, 0, 2, edge))
    rolls = ((0, 0), (edge, -edge), (-size, 2 * size + 1))
    edges = itertools.product(windows, (False, True), rolls)
    return drawn + [View(window, flip, roll) for window, flip, roll in edges]


def dense(size, first, length, flip, roll):
    """(S, S): one axis of the view as a matrix; centres at i + 1/2, edge pixels repeated; flip, then roll."""
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for i in range(size):
        place = min(max((i + 0.5) * length / size - 0.5, 0), length - 1)
        low = int(place)
        matrix[i, first + low] += 1 - (place - low)
        matrix[i, first + min(low + 1, length - 1)] += place - low
    matrix = matrix.flip(0) if flip else matrix
    return matrix[[(i - roll) % size for i in range(size)]]


def matrices(size, view):
    """-> (of the rows, of the columns)."""
    top, left, height, width = view.window or (0, 0, size, size)
    return dense(size, top, height, False, view.roll[0]), dense(size, left, width, view.flip, view.roll[1])


def forward_matrix(lines):
    """What LOWER and WEIGHT say: out[i] = (1 - w) x[l] + w x[l + 1], the last pixel repeated."""
    size = lines.shape[1]
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for i, (low, weight) in enumerate(zip(lines[LOWER].int().tolist(), lines[WEIGHT].tolist())):
        matrix[i, low] += 1 - weight
        matrix[i, min(low + 1, size - 1)] += weight
    return matrix


def backward_matrix(lines):
    """FIRST, STOP and SHIFT: the pixel r gathers from its range, after flip and roll, by the weights."""
    size = lines.shape[1]
    matrix = torch.zeros(size, size, dtype=torch.float64)
    roll, flip = int(lines[SHIFT, 0]), bool(lines[SHIFT, 1])
    assert 0 <= roll < size
    for r in range(size):
        for place in range(int(lines[FIRST, r]), int(lines[STOP, r])):
            i = ((size - 1 - place if flip else place) + roll) % size
            low, weight = int(lines[LOWER, i]), lines[WEIGHT, i].item()
            assert low in (r - 1, r)
            matrix[r, i] = 1 - weight if low == r else weight
    return matrix


@pytest.mark.parametrize("size", SIZES)
def test_a_view_is_these_matrices(size):
    """apply_view itself, and its gradient, against roll, flip and crop as two matrix products."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, size, size, dtype=torch.float64, generator=g).requires_grad_()
    for view in views_of(size):
        rows, columns = matrices(size, view)
        seen = apply_view(x, view)
        assert (seen - rows @ x @ columns.T).abs().max() < 1e-12
        gradient, = torch.autograd.grad(seen.square().sum(), x)
        wanted = 2 * rows.T @ seen @ columns
        assert (gradient - wanted).norm() < 1e-12 * wanted.norm()


@pytest.mark.parametrize("size", SIZES)
def test_the_table_says_the_same_forwards_and_backwards(size):
    views = views_of(size)
    table = tabulate(views, size)
    assert table.shape == (len(views), 10, size)
    for view, lines in zip(views, table):
        for axis, matrix in zip((lines[:5], lines[5:]), matrices(size, view)):
            assert (forward_matrix(axis) - matrix).abs().max() < 1e-12
            assert (backward_matrix(axis) - forward_matrix(axis).T).abs().max() == 0


def test_whole_numbers_of_the_table_are_exact_in_single_precision():
    table = tabulate(views_of(224), 224)
    whole = [line for line in range(10) if line % 5 != WEIGHT]
    assert torch.equal(table[:, whole].float().double(), table[:, whole])
    assert torch.equal(table[:, whole].round(), table[:, whole])
    assert ((table[:, [WEIGHT, 5 + WEIGHT]] >= 0) & (table[:, [WEIGHT, 5 + WEIGHT]] < 1)).all()
