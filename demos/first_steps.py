"""A whole diffusion model, flat: `python demos/first_steps.py` takes some ten seconds.

Data is noised, a network learns to predict the noise, and its predictions turn noise into data.
Put a breakpoint on any line and look at the arrays. The exact figure stands beside each number.
"""

from lab import script

script.begin(__doc__, folder="out")  # --help, and an end in one line

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # products this small are faster on one thread

import numpy as np

from lab import draw
from lab.metrics import distance_to_curve
from npdiff import exact
from npdiff.forward import q_sample
from npdiff.nn import mlp
from npdiff.nn.params import flatten, pack
from npdiff.optim import adam, learning_rate
from npdiff.output import network_input
from npdiff.reverse import predictor
from npdiff.sampler import ddpm
from npdiff.schedule import linear

rng = np.random.default_rng(0)
roll = exact.SwissRoll(noise=0.5)  # the data, whose density is known
schedule = linear(T=1000)  # the forward process: how much signal and noise there is at each t
theta, params = pack(mlp.init(rng))  # the network's parameters: one vector, and views of it by name
m, v = np.zeros_like(theta), np.zeros_like(theta)  # Adam's two moments
steps, batch = 3000, 512

for step in range(1, steps + 1):
    x_0 = roll.sample(batch, rng)  # (512, 2)   data
    t = rng.integers(1, schedule.T + 1, size=batch)  # (512,)     a t for each point
    eps = rng.standard_normal((batch, 2), dtype=np.float32)  # (512, 2)   noise
    x_t = q_sample(x_0, t, eps, schedule)  # (512, 2)   signal_t x_0 + noise_t eps
    x, level = network_input(x_t, t, schedule)  # x_t / std_t, and log(noise_t / signal_t) for t

    eps_hat, cache = mlp.forward(params, x, level)  # (512, 2)   the network predicts the noise
    loss = ((eps_hat - eps) ** 2).mean()  # L_simple, averaged over coordinates
    grad_eps_hat = 2 / eps.size * (eps_hat - eps)  # (512, 2)   dL/d eps_hat, from which
    _, grads = mlp.backward(params, cache, grad_eps_hat)  # come dL/d(every parameter)
    adam(theta, flatten(grads), m, v, step, learning_rate(step, steps, lr=5e-3))

    if step == 100 or step % 500 == 0:  # break here: at step 1 the network predicts only zeros
        best = roll.predictor(schedule)(x_t, t)  # (512, 2)   the best possible eps_hat
        floor = ((best - eps) ** 2).mean()  # on average 0.236
        print(f"step {step:4d}   loss {loss:.4f}   (a perfect network: {floor:.4f})")

data = roll.sample(2000, rng)
x_T = rng.standard_normal((2000, 2), dtype=np.float32)  # pure noise
for back in ddpm(predictor(mlp, params, schedule), x_T, schedule, rng):  # T steps back to data
    if back.t_prev in (999, 500, 200, 100, 50, 20, 1):
        x_t = q_sample(data, back.t_prev, x_T, schedule)  # the forward process at the same t
        reverse, forward = (distance_to_curve(x, roll).mean() for x in (back.x_prev, x_t))
        print(f"t {back.t_prev:4d}   {reverse:.3f} from the curve   (noised data: {forward:.3f})")

x_0 = back.x_prev
draw.clouds("out/first_steps.png", {"data": data, "noise x_{T}": x_T, "samples x_{0}": x_0})
print("out/first_steps.png")
