"""The two models in PyTorch, and their parameters to and from the problem's layout."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

LAYERS = {"cnn": ("conv_0", "conv_1", "dense_0", "dense_1"), "mlp": ("dense_0", "dense_1")}


class Net(nn.Module):
    """``cnn``: conv3x3 - ReLU - conv3x3 - ReLU - pool - dense - ReLU - dense; ``mlp``: dense - ReLU - dense."""

    def __init__(self, model: str, params: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.model = model
        for name in LAYERS[model]:
            shape = params[f"{name}/kernel"].shape
            setattr(self, name, nn.Linear(*shape) if len(shape) == 2 else nn.Conv2d(shape[2], shape[3], shape[0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.model == "cnn":
            x = torch.relu(self.conv_1(torch.relu(self.conv_0(x))))
            x = torch.flatten(torch.max_pool2d(x, 2), 1)
        return self.dense_1(torch.relu(self.dense_0(x)))

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of a batch."""
        return nn.functional.cross_entropy(self(x), y)


def make(model: str, params: dict[str, np.ndarray], setting: dict, device: str = "cpu") -> Net:
    """The model with these parameters. setting: ``layout`` may be ``channels_last``."""
    if device == "cuda":
        as_jax_multiplies()
    net = Net(model, params)
    net.load_state_dict(to_torch(model, params))
    return net.to(device, memory_format=memory_format(setting))


def as_jax_multiplies() -> None:
    """On a GPU, float32 products in TF32: JAX's default there, and PyTorch's for convolutions but not for products."""
    torch.set_float32_matmul_precision("high")


def memory_format(setting: dict) -> torch.memory_format:
    """How images and kernels lie in memory."""
    return torch.channels_last if setting.get("layout") == "channels_last" else torch.contiguous_format


def images(x: np.ndarray, setting: dict, device: str = "cpu") -> torch.Tensor:
    """Examples of all clients [N, M, ...] as a tensor [N * M, ...], images with channels first."""
    flat = torch.from_numpy(x.reshape(-1, *x.shape[2:])).to(device)
    if flat.ndim != 4:
        return flat
    return flat.permute(0, 3, 1, 2).contiguous(memory_format=memory_format(setting))


def to_torch(model: str, params: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The problem's parameters under PyTorch's names and in its order of axes."""
    state = {}
    for name in LAYERS[model]:
        kernel = params[f"{name}/kernel"]
        if kernel.ndim == 4:
            kernel = kernel.transpose(3, 2, 0, 1)
        elif name == "dense_0" and model == "cnn":
            kernel = _flat(params, kernel).transpose(3, 2, 0, 1).reshape(kernel.shape[1], -1)
        else:
            kernel = kernel.T
        state[f"{name}.weight"] = torch.from_numpy(np.ascontiguousarray(kernel))
        state[f"{name}.bias"] = torch.from_numpy(params[f"{name}/bias"].copy())
    return state


def from_torch(model: str, state: dict[str, torch.Tensor], like: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of ``to_torch``."""
    params = {}
    for name in LAYERS[model]:
        kernel, shape = state[f"{name}.weight"].detach().cpu().numpy(), like[f"{name}/kernel"].shape
        if kernel.ndim == 4:
            kernel = kernel.transpose(2, 3, 1, 0)
        elif name == "dense_0" and model == "cnn":
            height, width, channels, units = _flat(like, like["dense_0/kernel"]).shape
            kernel = kernel.reshape(units, channels, height, width).transpose(2, 3, 1, 0).reshape(shape)
        else:
            kernel = kernel.T
        params[f"{name}/kernel"] = np.ascontiguousarray(kernel)
        params[f"{name}/bias"] = state[f"{name}.bias"].detach().cpu().numpy()
    return params


def _flat(params: dict[str, np.ndarray], kernel: np.ndarray) -> np.ndarray:
    """The kernel behind the flattened image as [height, width, channels, units]; images are square."""
    channels = params["conv_1/bias"].shape[0]
    side = round((kernel.shape[0] // channels) ** 0.5)
    return kernel.reshape(side, side, channels, -1)
