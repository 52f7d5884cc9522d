"""The two networks once more in PyTorch, for demos/benchmark.py alone: eager, in PyTorch's own layouts, on the same weights and batch."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from npdiff.backend import to_numpy
from npdiff.nn import mlp, unet
from npdiff.schedule import Schedule

version = torch.__version__


def settings(threads: int, tf32: bool) -> None:
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True


def parameters(tree: dict, device: str) -> dict:
    """The tree as tensors that want gradients: weights of linear layers (O, I), of convolutions (O, I, K, K)."""

    def tensor(name: str, value: Any) -> torch.Tensor:
        a = torch.tensor(to_numpy(value), device=device)
        if name == "w":
            a = a.permute(3, 2, 0, 1) if a.ndim == 4 else a.T
        return a.contiguous().requires_grad_()

    return {name: parameters(value, device) if isinstance(value, dict) else tensor(name, value) for name, value in tree.items()}


def leaves(tree: dict) -> list[tuple[str, torch.Tensor]]:
    return [leaf for name, value in tree.items() for leaf in (leaves(value) if isinstance(value, dict) else [(name, value)])]


def linear(x: torch.Tensor, p: dict) -> torch.Tensor:
    return F.linear(x, p["w"], p["b"])


def waves(level: torch.Tensor, net: Any) -> torch.Tensor:
    frequencies = torch.tensor(to_numpy(net.FREQUENCIES), dtype=level.dtype, device=level.device)
    angle = level.clamp(net.LEVEL_MIN, net.LEVEL_MAX)[:, None] * frequencies
    return torch.cat([angle.sin(), angle.cos()], 1)


def mlp_forward(p: dict, x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    h = linear(torch.cat([x, waves(level, mlp)], 1), p["first"])
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


def unet_forward(p: dict, x: torch.Tensor, level: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    e = linear(F.silu(linear(waves(level, unet), p["embedding"]["linear_1"])), p["embedding"]["linear_2"])
    e = F.silu(e + F.embedding(label, p["embedding"]["lookup"]["table"]))
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
        device = "cpu" if case.xp is np else "cuda"
        tensor = lambda a: torch.tensor(to_numpy(a), device=device)  # noqa: E731
        image = case.net is unet
        self.image, self.schedule = image, schedule
        self.params = parameters(case.state.params, device)
        self.x_0, self.eps = (tensor(a).permute(0, 3, 1, 2).contiguous() if image else tensor(a) for a in (case.x_0, case.eps))
        shape = (-1,) + (1,) * (self.x_0.ndim - 1)
        self.t = tensor(case.t)
        self.signal, self.noise, self.level = (tensor(a.astype(np.float32)) for a in (schedule.signal, schedule.noise, schedule.level))
        self.signal_t, self.noise_t = self.signal[self.t].reshape(shape), self.noise[self.t].reshape(shape)
        self.label = tensor(case.inputs["label"]) if image else None
        self.no_class = torch.full_like(self.label, 10) if self.label is not None else None
        flat = [value for _, value in leaves(self.params)]
        self.adam = torch.optim.Adam(flat, lr=1e-5, betas=(0.9, 0.99), eps=1e-8)
        self.flat, self.ema = flat, [value.detach().clone() for value in flat]

    def net(self, x: torch.Tensor, level: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
        return unet_forward(self.params, x, level, label) if label is not None else mlp_forward(self.params, x, level)

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

        def of(name: str, value: torch.Tensor) -> np.ndarray:
            grad = value.grad
            if name == "w":
                grad = grad.permute(2, 3, 1, 0) if grad.ndim == 4 else grad.T
            return grad.contiguous().cpu().numpy().ravel()

        return np.concatenate([of(name, value) for name, value in leaves(self.params)])

    def eps_hat(self, x_t: torch.Tensor, t: Any, label: torch.Tensor | None) -> torch.Tensor:
        level = self.level[t].expand(len(x_t))
        v = self.net(x_t, level, label)
        shape = (-1,) + (1,) * (x_t.ndim - 1)
        return self.signal[t].reshape(shape) * v + self.noise[t].reshape(shape) * x_t

    def as_ours(self, x: torch.Tensor) -> np.ndarray:
        return (x.permute(0, 2, 3, 1) if self.image else x).cpu().numpy()

    @torch.no_grad()
    def forward(self) -> torch.Tensor:
        return self.eps_hat(self.x_0, self.t, self.label)

    @torch.no_grad()
    def sample(self, steps: int = 5, w: float = 0.5) -> torch.Tensor:
        x = self.eps
        ts = np.linspace(0, self.schedule.T, steps + 1).round().astype(int)[::-1]
        for t, t_prev in zip(ts[:-1], ts[1:], strict=True):
            eps = (1 + w) * self.eps_hat(x, t, self.label) - w * self.eps_hat(x, t, self.no_class)
            x = self.signal[t_prev] * (x - self.noise[t] * eps) / self.signal[t] + self.noise[t_prev] * eps
        return x
