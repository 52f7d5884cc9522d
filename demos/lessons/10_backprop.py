"""How is a gradient derived by hand?

Write each number of the output as a sum, and read its derivatives off that sum. Then go back from
the loss L: the gradient at a number is a sum over all that uses it, of the gradient there times the
derivative. The transpose, the sum over a batch and the three terms of group norm are such sums.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # demos/, where lab lies

from lab import draw, lesson

lesson.begin(__doc__)

import numpy as np

from npdiff.loss import l_simple
from npdiff.nn import conv, mlp, ops
from npdiff.nn.params import map_leaves
from npdiff.schedule import linear

rng, h = np.random.default_rng(0), 1e-5
# The two errors of a difference, h^2 L'''/6 and rounding / h, are below 3e-9 for L and L''' < 100.


def D(y, x, g):  # dL/dx, where dL/dy = g: (L(x + h) - L(x - h)) / 2h for each entry of x
    gradient = np.zeros(x.shape)
    for i in np.ndindex(x.shape):
        d = np.zeros(x.shape)  # moves entry i alone
        d[i] = h
        gradient[i] = (g * (y(x + d) - y(x - d))).sum() / (2 * h)
    return gradient


print("A linear layer by pencil, two rows, one 2 x 2 weight: y_nj = x_n1 w_1j + x_n2 w_2j + b_j")
x, w, b = np.array([[1.0, 2], [3, -1]]), np.array([[3.0, -1], [0.5, 2]]), np.array([0.0, 1])
y, eps = x @ w + b, np.array([[3.0, 4.5], [7.5, -5]])  # eps is what y should be
g = 2 / 2 * (y - eps) / 2  # dL/dy: L is 1/d sum_j (y_nj - eps_nj)^2, d = 2, averaged over two rows
grad_w = np.zeros((2, 2))
for i, j in np.ndindex(2, 2):  # w_ij is in y_1j, times x_1i, and in y_2j, times x_2i. So: x^T g
    grad_w[i, j] = x[0, i] * g[0, j] + x[1, i] * g[1, j]
print("    y", y.tolist(), "  g", g.tolist(), "  dL/dw", grad_w.tolist())
grad_x, grads = ops.linear_backward(g, ops.linear_forward(x, w, b)[1])  # x_ni is in y_n1 and y_n2
lesson.equal("g = 2/d (y - eps) / rows: l_simple", g, l_simple(y, eps, 1, eps, linear())[1] / 2)
lesson.equal("dL/dw = x^T g: linear_backward", grad_w, grads["w"])
lesson.equal("by differences", grad_w, D(lambda w: x @ w + b, w, g), within=1e-8)
lesson.equal("dL/dx = g w^T: linear_backward", [u * w[:, 0] + v * w[:, 1] for u, v in g], grad_x)
lesson.equal("dL/db = g_1 + g_2: linear_backward", g[0] + g[1], grads["b"])

print("SiLU, y = x s with s = 1 / (1 + exp(-x)): dy/dx = s + x ds/dx")
x, g = np.array([-2.0, 0.0, 1.5, 3.0]), rng.standard_normal(4)
s = 1 / (1 + np.exp(-x))
ds = -1 / (1 + np.exp(-x)) ** 2 * -np.exp(-x)  # of 1/u, -1/u^2, times that of u = 1 + exp(-x)
dy = s + x * ds
lesson.equal("exp(-x) / (1 + exp(-x))^2 = s (1 - s)", ds, s * (1 - s))
lesson.equal("dy/dx = s (1 + x (1 - s))", dy, s * (1 + x * (1 - s)))
lesson.equal("g dy/dx: silu_backward", g * dy, ops.silu_backward(g, ops.silu_forward(x)[1])[0])
third = ((3 + x * (1 - 2 * s)) * ds * (1 - 2 * s) - 2 * x * ds**2)[2]  # y''' at 1.5
hs = 10.0 ** np.linspace(-10, 0, 61)  # y(x + h) - y(x - h) = 2h y' + 2h^3/6 y''' + 2h^5/120 y^(5)
off = (ops.silu_forward(1.5 + hs)[0] - ops.silu_forward(1.5 - hs)[0]) / (2 * hs) - dy[2]
lesson.equal("off = h^2/6 y''', at h = 0.01", off[48], 1e-4 / 6 * third, within=1e-8 / 120)

print("A chain, z = x + y w + b with y = silu(x), as in the MLP: from dL/dz = g back to x")
w = rng.standard_normal((4, 4))
grad_y = w @ g  # through the linear layer, as by pencil: g w^T
grad_x = g + grad_y * dy  # x is used twice, in the sum and by SiLU: what comes back is added up
_, cache = mlp.residual_forward(x[None], {"w": w, "b": 0 * x}, ops)
print(f"    g {g.round(2)}   dL/dy {grad_y.round(2)}   dL/dx {grad_x.round(2)}")
lesson.equal("dL/dx: residual_backward", grad_x, mlp.residual_backward(g[None], cache, ops)[0][0])
lesson.equal("by differences", grad_x, D(lambda x: x + x / (1 + np.exp(-x)) @ w, x, g), within=1e-8)

print("A whole MLP is such a chain: forward, and back through the same lines in reverse")
params = map_leaves(lambda leaf: rng.standard_normal(leaf.shape), mlp.init(rng, 2, 3, 1))
x, level, g = rng.standard_normal((5, 2)), rng.standard_normal(5), rng.standard_normal((5, 2))
(w_1, b_1), (w_2, b_2), (w_3, b_3) = (layer.values() for layer in params.values())
inputs = np.concatenate([x, ops.level_waves(level, mlp.FREQUENCIES)], axis=1)
a = inputs @ w_1 + b_1  # (5, 3): five rows, three units
s_a = 1 / (1 + np.exp(-a))
c = a + a * s_a @ w_2 + b_2  # the residual layer
s_c = 1 / (1 + np.exp(-c))
out = c * s_c @ w_3 + b_3
g_c = (g @ w_3.T) * (s_c + c * s_c * (1 - s_c))  # through the last layer and its SiLU
g_a = g_c + (g_c @ w_2.T) * (s_a + a * s_a * (1 - s_a))  # through both ways of the residual layer
book_out, cache = mlp.forward(params, x, level)
grad_x, grads = mlp.backward(params, cache, g)
lesson.equal("out: mlp.forward", out, book_out)
for name, by_hand in (("first", inputs.T @ g_a), ("layer_1", (a * s_a).T @ g_c)):
    lesson.equal(f"dL/dw of {name}: mlp.backward", by_hand, grads[name]["w"])
lesson.equal("dL/dw of last: mlp.backward", (c * s_c).T @ g, grads["last"]["w"])
lesson.equal("dL/dx, of the 2 inputs that are x: mlp.backward", (g_a @ w_1.T)[:, :2], grad_x)
moved = D(lambda w: mlp.forward({**params, "first": {"w": w, "b": b_1}}, x, level)[0], w_1, g)
within = 1e-7  # weights near 1 in three layers make L and its derivatives some 30 times larger
lesson.equal("dL/dw of first, by differences", grads["first"]["w"], moved, within=within)

print("Group norm of four channels, y = gain n + bias, n = (x - mean) rstd: every n_i uses all x_j")
(gain, bias, g), x = rng.standard_normal((3, 4)), 1 + 2 * rng.standard_normal(4)
d = x - x.mean()
rstd = ((d**2).mean() + 1e-5) ** -0.5  # 1 / deviation
n, g_n = d * rstd, gain * g  # g_n = dL/dn
dd = np.eye(4) - 1 / 4  # dd_i/dx_j, (4, 4): from x_i itself, and from the mean
dvar = (2 * d[:, None] * dd).mean(axis=0)  # dvar/dx_j = the mean over i of 2 d_i dd_i/dx_j
drstd = -0.5 * rstd**3 * dvar  # of (var + tiny)^(-1/2)
dn = dd * rstd + d[:, None] * drstd  # dn_i/dx_j, of a product
third_term = n * (g_n * n).mean() * rstd  # the way through rstd; mean(g_n) is that through the mean
lesson.equal("dvar/dx_j = 2 d_j / 4, since sum d = 0", dvar, d / 2)
lesson.equal("dn_i/dx_j = ((i = j) - 1/4 - n_i n_j/4) rstd", dn, (dd - np.outer(n, n) / 4) * rstd)
lesson.equal("sum of g_n dn/dx: three terms", g_n @ dn, (g_n - g_n.mean()) * rstd - third_term)
_, cache = conv.group_norm_forward(x.reshape(1, 1, 1, 4), gain, bias, groups=1)
grad_x, grads = conv.group_norm_backward(g.reshape(1, 1, 1, 4), cache)
dx = D(lambda x: conv.group_norm_forward(x.reshape(1, 1, 1, 4), gain, bias, 1)[0][0, 0, 0], x, g)
lesson.equal("dL/dx: group_norm_backward", g_n @ dn, grad_x[0, 0, 0])
lesson.equal("by differences", g_n @ dn, dx, within=1e-8)
lesson.equal("dL/dgain = g n, not g y: group_norm_backward", g * n, grads["gain"])
print(f"  no third term: off by {abs(third_term).max():.2g}, hidden if gain = g = 1")
print(f"  g y for g n: off by {abs(g * (gain * n + bias - n)).max():.2g}, hidden if gain 1, bias 0")

print("A 3 x 3 convolution: y = sum over k, l of w[k, l] times x shifted by k - 1, l - 1")
x = np.array([[0.0, 1, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]])[None, :, :, None]
w, b, g = np.arange(1.0, 10).reshape(3, 3, 1, 1), np.zeros(1), rng.standard_normal((1, 4, 4, 1))
padded, shifted = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), {}  # beyond the border x is 0
y, back, grad_w = np.zeros((1, 4, 4, 1)), np.zeros((1, 6, 6, 1)), np.zeros((3, 3, 1, 1))
for k, l in np.ndindex(3, 3):
    shifted[k, l] = padded[:, k : k + 4, l : l + 4]  # at i, j: x[i + k - 1, j + l - 1]
    y += shifted[k, l] * w[k, l]
    grad_w[k, l] = (g * shifted[k, l]).sum()  # w[k, l] is in y[i, j] at every i, j
    back[:, k : k + 4, l : l + 4] += g * w[k, l]  # dL/dshifted, to the pixels it was taken from
book_y, cache = conv.conv2d_forward(x, w, b)
grad_x, grads = conv.conv2d_backward(g, cache)
dx = D(lambda x: conv.conv2d_forward(x, w, b)[0], x, g)
lesson.equal("y = sum of w shifted: conv2d_forward", y, book_y)
lesson.equal("dL/dw[k, l] = sum of g shifted: conv2d_backward", grad_w, grads["w"])
lesson.equal("dL/dx = g w, shifted back: conv2d_backward", back[:, 1:5, 1:5], grad_x)
lesson.equal("by differences", grad_x, dx, within=1e-8)

taylor = draw.Series("h^{2} |y'''|/6", hs[25:], -third * hs[25:] ** 2 / 6, draw.MODEL, 4.0)
rounding = draw.Series("rounding, 2^{-53} y/h", hs[:40], 1.2 / 2**53 / hs[:40], draw.EXACT, 4.0)
error = [taylor, rounding, draw.Series("measured", hs, np.abs(off), draw.DATA, 1.5)]
one, back = np.eye(16)[9].reshape(4, 4), np.pad(w.squeeze() / 9, ((1, 0), (0, 1)))  # g and dL/dx
rows = [[*(shifted[k, l] for l in range(3)), (y / y.max(), one, back)[k]] for k in range(3)]
tiles = np.block([[np.pad(0.1 + 0.9 * tile.squeeze(), 1) for tile in row] for row in rows])
draw.board(
    "out/lessons/10.png",
    [
        draw.View("Error of the central difference of SiLU at 1.5", error, "h", "", True, True),
        draw.View("Nine shifted images;  on the right y, g and dL/dx", [draw.Shades("", tiles)]),
    ],
    "Left: too large an h is wrong by h^{2}, too small a one by rounding over h; 10^{-5} is best. "
    "Right: an image, shifted by k - 1 up (k = 0, 1, 2 from the top) and l - 1 to the left; y, the "
    "sum of the nine with weights 1, 2, ..., 9; a g at one pixel; and its dL/dx: w, around it.",
    height=312,
)
print("out/lessons/10.png")

# Change this, and see:
#   h = 1e-2 for 1e-5       by differences the chain, the MLP and group norm DISAGREE, by 5e-6,
#                           4e-5 and 8e-6: h^2
#   h = 1e-12               by differences all DISAGREE, by 9e-5 to 5e-3: rounding / h
#   grad_x = grad_y * dy    the chain DISAGREES, by 0.6: what comes past SiLU is lost
