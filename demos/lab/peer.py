"""The two networks in PyTorch, for demos/benchmark.py: eager, on the same weights and batch.

Each has PyTorch's own memory layouts.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from npdiff.backend import to_numpy
from npdiff.nn import mlp, ops, unet
from npdiff.schedule import Schedule

version = torch.__version__


def settings(threads: int, tf32: bool) -> None:
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True


def parameters(tree: dict, device: str) -> dict:
    """The tree as tensors that take gradients.

    Weights of linear layers have shape (O, I), those of convolutions (O, I, K, K).
    """

    def tensor(name: str, value: Any) -> torch.Tensor:
        a = torch.tensor(to_numpy(value), device=device)
        if name == "w":
            a = a.permute(3, 2, 0, 1) if a.ndim == 4 else a.T
        return a.contiguous().requires_grad_()

    return {
        name: parameters(value, device) if isinstance(value, dict) else tensor(name, value)
        for name, value in tree.items()
    }


def leaves(tree: dict) -> list[tuple[str, torch.Tensor]]:
    """The tensors of the tree with their names, in the tree's order."""
    return [
        leaf
        for name, value in tree.items()
        for leaf in (leaves(value) if isinstance(value, dict) else [(name, value)])
    ]


def linear(x: torch.Tensor, p: dict) -> torch.Tensor:
    return F.linear(x, p["w"], p["b"])


def waves(level: torch.Tensor, frequencies: np.ndarray) -> torch.Tensor:
    level = level.clamp(ops.LEVEL_MIN, ops.LEVEL_MAX)
    angle = level[:, None] * torch.tensor(frequencies, dtype=level.dtype, device=level.device)
    return torch.cat([angle.sin(), angle.cos()], 1)


def mlp_forward(p: dict, x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    h = linear(torch.cat([x, waves(level, mlp.FREQUENCIES)], 1), p["first"])
    for name in (name for name in p if name.startswith("layer_")):
        h = h + linear(F.silu(h), p[name])
    return linear(F.silu(h), p["last"])


def conv(x: torch.Tensor, p: dict, stride: int = 1) -> torch.Tensor:
    return F.conv2d(x, p["w"], p["b"], stride=stride, padding=p["w"].shape[2] // 2)


def norm(x: torch.Tensor, p: dict) -> torch.Tensor:
    return F.group_norm(x, unet.GROUPS, p["gain"], p["bias"])


def block(x: torch.Tensor, e: torch.Tensor, p: dict) -> torch.Tensor:
    h = conv(F.silu(norm(x, p["norm_1"])), p["conv_1"])
    scale, shift = linear(e, p["modulation"])[:, :, None, None].chunk(2, dim=1)
    h = conv(F.silu(norm(h, p["norm_2"]) * (1 + scale) + shift), p["conv_2"])
    return (conv(x, p["bypass"]) if "bypass" in p else x) + h


def embedding(level: torch.Tensor, label: torch.Tensor, p: dict) -> torch.Tensor:
    e = F.silu(linear(waves(level, unet.FREQUENCIES), p["linear_1"]))
    return F.silu(linear(e, p["linear_2"]) + F.embedding(label, p["lookup"]["table"]))


def unet_forward(
    p: dict, x: torch.Tensor, level: torch.Tensor, label: torch.Tensor
) -> torch.Tensor:
    e = embedding(level, label, p["embedding"])
    fine = block(conv(F.pixel_unshuffle(x, 2), p["first"]), e, p["encode_fine"])
    coarse = block(conv(fine, p["shrink"], stride=2), e, p["encode_coarse"])
    h = block(coarse, e, p["middle"])
    h = block(torch.cat([h, coarse], 1), e, p["decode_coarse"])
    h = conv(F.interpolate(h, scale_factor=2.0), p["grow"])
    h = block(torch.cat([h, fine], 1), e, p["decode_fine"])
    return F.pixel_shuffle(conv(F.silu(norm(h, p["norm"])), p["last"]), 2)


class Twin:
    """What demos/benchmark.Case does, in PyTorch."""

    def __init__(self, case: Any, schedule: Schedule) -> None:
        self.device = "cpu" if isinstance(case.x_0, np.ndarray) else "cuda"
        self.image, self.T = case.x_0.ndim == 4, schedule.T
        self.params = parameters(case.state.params, self.device)
        self.x_0, self.eps = (self.as_peers(a) for a in (case.x_0, case.eps))
        self.t = self.tensor(case.t)
        tables = schedule.signal, schedule.noise, schedule.level
        self.signal, self.noise, self.level = (self.tensor(a.astype(np.float32)) for a in tables)
        self.signal_t, self.noise_t = (self.per_row(a[self.t]) for a in (self.signal, self.noise))
        self.label = self.tensor(case.inputs["label"]) if self.image else None
        self.no_class = torch.full_like(self.label, 10) if self.label is not None else None
        self.flat = [value for _, value in leaves(self.params)]
        self.ema = [value.detach().clone() for value in self.flat]
        self.adam = torch.optim.Adam(self.flat, lr=1e-5, betas=(0.9, 0.99), eps=1e-8)

    def tensor(self, a: Any) -> torch.Tensor:
        return torch.tensor(to_numpy(a), device=self.device)

    def as_peers(self, a: Any) -> torch.Tensor:
        """Images have their channels first here."""
        x = self.tensor(a)
        return x.permute(0, 3, 1, 2).contiguous() if self.image else x

    def as_ours(self, x: torch.Tensor) -> np.ndarray:
        return (x.permute(0, 2, 3, 1) if self.image else x).cpu().numpy()

    def per_row(self, a: torch.Tensor) -> torch.Tensor:
        return a.reshape(-1, *[1] * (self.x_0.ndim - 1))

    def net(self, x: torch.Tensor, level: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
        if label is None:
            return mlp_forward(self.params, x, level)
        return unet_forward(self.params, x, level, label)

    def loss(self) -> torch.Tensor:
        x_t = self.signal_t * self.x_0 + self.noise_t * self.eps
        v = self.signal_t * self.eps - self.noise_t * self.x_0
        return ((self.net(x_t, self.level[self.t], self.label) - v) ** 2).mean()

    def step(self) -> None:
        self.adam.zero_grad()
        self.loss().backward()
        torch.nn.utils.clip_grad_norm_(self.flat, 1.0)
        self.adam.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.ema, self.flat, 0.001)

    def gradient(self) -> np.ndarray:
        """dL/dtheta in npdiff's order and layouts."""
        self.adam.zero_grad()
        self.loss().backward()

        def as_ours(name: str, value: torch.Tensor) -> np.ndarray:
            grad: Any = value.grad
            if name == "w":
                grad = grad.permute(2, 3, 1, 0) if grad.ndim == 4 else grad.T
            return grad.contiguous().cpu().numpy().ravel()

        return np.concatenate([as_ours(name, value) for name, value in leaves(self.params)])

    def eps_hat(self, x_t: torch.Tensor, t: Any, label: torch.Tensor | None) -> torch.Tensor:
        v = self.net(x_t, self.level[t].expand(len(x_t)), label)
        return self.per_row(self.signal[t]) * v + self.per_row(self.noise[t]) * x_t

    @torch.no_grad()
    def forward(self) -> torch.Tensor:
        return self.eps_hat(self.x_0, self.t, self.label)

    @torch.no_grad()
    def sample(self, steps: int = 5, w: float = 0.5) -> torch.Tensor:
        x = self.eps
        ts = np.linspace(0, self.T, steps + 1).round().astype(int)[::-1]
        for t, t_prev in zip(ts[:-1], ts[1:], strict=True):
            eps_cond, eps_uncond = (self.eps_hat(x, t, c) for c in (self.label, self.no_class))
            eps = (1 + w) * eps_cond - w * eps_uncond
            x_0 = (x - self.noise[t] * eps) / self.signal[t]
            x = self.signal[t_prev] * x_0 + self.noise[t_prev] * eps
        return x
