"""A whole diffusion model, flat, in the order in which things happen. Put a breakpoint anywhere and look at the arrays.

python demos/first_steps.py        about ten seconds; draws out/first_steps.png
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # products this small are faster on one thread; read when NumPy is imported

from pathlib import Path

import numpy as np

import _draw
from npdiff import exact, schedule
from npdiff.forward import q_sample
from npdiff.nn import mlp
from npdiff.nn.params import flatten, pack
from npdiff.optim import adam, learning_rate
from npdiff.reverse import predictor
from npdiff.sampler import ddpm

rng = np.random.default_rng(0)
roll = exact.SwissRoll(noise=0.5)  # the data, whose density is known
chain = schedule.linear(T=1000)  # the forward process: how much noise at each t
theta, params = pack(mlp.init(rng))  # the network's parameters: one vector, and views of it by name
m, v = np.zeros_like(theta), np.zeros_like(theta)  # Adam's two moments
steps, batch = 3000, 512

for step in range(1, steps + 1):
    x_0 = roll.sample(batch, rng)  # (512, 2)   data
    t = rng.integers(1, chain.T + 1, size=batch)  # (512,)     a step of the chain for each point
    eps = rng.standard_normal((batch, 2), dtype=np.float32)  # (512, 2)   noise
    x_t = q_sample(x_0, t, eps, chain)  # (512, 2)   signal_t x_0 + noise_t eps
    level = chain.level[t].astype(np.float32)  # (512,)     log(noise_t / signal_t), what the network is told of t

    eps_hat, cache = mlp.forward(params, x_t, level)  # (512, 2)   the network guesses the noise
    loss = ((eps_hat - eps) ** 2).mean()  # L_simple, a dimension
    grad_eps_hat = 2 / eps.size * (eps_hat - eps)  # (512, 2)   and its gradient, from which
    _, grads = mlp.backward(params, cache, grad_eps_hat)  # the network's backward pass finds dL/d(every parameter)
    adam(theta, flatten(grads), m, v, step, learning_rate(step, steps, lr=5e-3))

    if step % 500 == 0:
        print(f"step {step}   loss {loss:.4f}   (a perfect network: 0.236 on average)")

x_T = rng.standard_normal((2000, 2), dtype=np.float32)  # pure noise, which
for back in ddpm(predictor(mlp, params, chain), x_T, chain, rng):  # the learned process walks back, T steps, to data
    if back.t_prev % 250 == 0:
        spread = back.x_prev.std()
        print(f"t {back.t_prev:4d}   standard deviation {spread:.3f}")

Path("out").mkdir(exist_ok=True)
_draw.clouds("out/first_steps.png", {"data": roll.sample(2000, rng), "noise x_T": x_T, "samples x_0": back.x_prev})
print("out/first_steps.png")
