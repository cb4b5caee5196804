"""What an actor-critic reads: decoded pixels through a CNN and an LSTM (IRIS) or without memory, or codes, or codes and h.

A network is built with `shapes` and its own keywords, the section `policy.network` of a recipe. It has `needs_pixels`,
`needs_h`, `features` (F), `start(batch) -> carry`, `forward(seen, carry) -> features (B, F), carry` for one step and
`forward_sequence(seen, carry) -> features (B, T, F)` for a trajectory; `seen` is what `read_trajectory(trajectory)` or
`read_view(view)` returned.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenworld.errors import UserError
from tokenworld.interfaces import Part, Shapes, View


class PixelNetwork(nn.Module, Part):
    """IRIS's policy: four convolutions with max-pooling, then an LSTM, on the reconstruction, never on the real frame."""

    needs_pixels, needs_h = True, False

    def __init__(self, *, shapes: Shapes, hidden: int = 512):
        super().__init__()
        check_width(hidden)
        C, H, W = shapes.frame
        layers, width = [], C
        for out in (32, 32, 64, 64):
            layers += [nn.Conv2d(width, out, 3, padding=1), nn.MaxPool2d(2) if min(H, W) >= 2 else nn.Identity(), nn.ReLU()]
            width = out
            if min(H, W) >= 2:
                H, W = H // 2, W // 2
        self.cnn = nn.Sequential(*layers, nn.Flatten())
        self.lstm = nn.LSTM(width * H * W, hidden, batch_first=True)
        self.features = hidden

    def read_view(self, view: View) -> Tensor:
        return view.decode()

    def read_trajectory(self, trajectory) -> Tensor:
        return trajectory.frames

    def start(self, batch: int) -> Tensor:
        return self.lstm.weight_hh_l0.new_zeros(batch, 2, self.features)  # hidden and cell

    def forward(self, seen: Tensor, carry: Tensor) -> tuple[Tensor, Tensor]:
        out, (hidden, cell) = self.lstm(self._cnn(seen).unsqueeze(1), _split(carry))
        return out[:, 0], torch.stack([hidden[0], cell[0]], 1)

    def forward_sequence(self, seen: Tensor, carry: Tensor) -> Tensor:
        B, T = seen.shape[:2]
        out, _ = self.lstm(self._cnn(seen.flatten(0, 1)).view(B, T, self.lstm.input_size), _split(carry))
        return out  # (B, T, F)

    def _cnn(self, frames: Tensor) -> Tensor:
        return self.cnn(2 * frames - 1)


class FrameNetwork(nn.Module, Part):
    """A convolution of 16 channels on the decoded frame, then two layers: MinAtar's network (Young and Tian 2019,
    arXiv:1903.03176) and one layer more. No memory: for frames that show all there is to know.

    What it learns of an object at one position holds at all others; a table of codes per position learns each one alone.
    Frames of 20 pixels or more are read with a stride that leaves about 10 x 10 positions.
    """

    needs_pixels, needs_h = True, False

    def __init__(self, *, shapes: Shapes, hidden: int = 512):
        super().__init__()
        check_width(hidden)
        C, H, W = shapes.frame
        stride = max(1, min(H, W) // 10)
        size, padding = 2 + stride, max(0, 3 - min(H, W))
        self.cnn = nn.Sequential(nn.Conv2d(C, 16, size, stride, padding), nn.SiLU(), nn.Flatten())
        rows, columns = ((n + 2 * padding - size) // stride + 1 for n in (H, W))
        self.body = nn.Sequential(
            nn.Linear(16 * rows * columns, hidden),
            nn.LayerNorm(hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.LayerNorm(hidden),
            nn.SiLU(),
        )
        self.features = hidden

    def read_view(self, view: View) -> Tensor:
        return view.decode()

    def read_trajectory(self, trajectory) -> Tensor:
        return trajectory.frames

    def start(self, batch: int) -> None:
        return None

    def forward(self, seen: Tensor, carry: None) -> tuple[Tensor, None]:
        return self.body(self.cnn(seen)), None

    def forward_sequence(self, seen: Tensor, carry: None) -> Tensor:
        return self.forward(seen.flatten(0, 1), None)[0].view(*seen.shape[:2], self.features)  # also of no rows


class VectorNetwork(nn.Module, Part):
    """Two layers on decoded state vectors, each number scaled by the mean and spread of all that it has learned from. No
    memory."""

    needs_pixels, needs_h = True, False

    def __init__(self, *, shapes: Shapes, hidden: int = 512):
        super().__init__()
        check_width(hidden)
        if shapes.frame_dtype != "float32":
            raise UserError(f"policy.network VectorNetwork reads state vectors, got frames {shapes.frame} of"
                            f" {shapes.frame_dtype}: choose FrameNetwork")  # fmt: skip
        self.norm = RunningNorm(shapes.frame[0])
        layers = [nn.Linear(shapes.frame[0], hidden), nn.LayerNorm(hidden), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.SiLU())
        self.features = hidden

    def read_view(self, view: View) -> Tensor:
        return view.decode().flatten(1)

    def read_trajectory(self, trajectory) -> Tensor:
        return trajectory.frames.flatten(2)

    def start(self, batch: int) -> None:
        return None

    def forward(self, seen: Tensor, carry: None) -> tuple[Tensor, None]:
        return self.body(self.norm(seen)), None

    def forward_sequence(self, seen: Tensor, carry: None) -> Tensor:
        return self.body(self.norm(seen))


class RunningNorm(nn.Module):
    """Numbers (..., M) less their mean, in units of their spread, over all batches that came in training."""

    def __init__(self, M: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(M))
        self.register_buffer("square", torch.ones(M))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self._update(x.detach().flatten(0, -2))
        return ((x - self.mean) / (self.square - self.mean**2).clamp(min=1e-8).sqrt()).clamp(-5, 5)

    @torch.no_grad()
    def _update(self, x: Tensor) -> None:
        """x (n, M). The mean of all batches at first, later of about the last hundred."""
        if len(x) == 0:
            return
        self.count += 1
        share = 1 / self.count.clamp(max=100)
        self.mean.lerp_(x.mean(0), share)
        self.square.lerp_(x.square().mean(0), share)


class CodesNetwork(nn.Module, Part):
    """A learned vector per position and code, summed (a linear layer on one-hot codes), then one more layer. No memory."""

    needs_pixels, needs_h = False, False

    def __init__(self, *, shapes: Shapes, hidden: int = 512):
        super().__init__()
        check_width(hidden)
        K, V = shapes.codes, shapes.vocab_size
        self.table = nn.EmbeddingBag(K * V, hidden, mode="sum")
        nn.init.normal_(self.table.weight, std=K**-0.5)
        self.register_buffer("offset", torch.arange(K) * V, persistent=False)
        self.body = nn.Sequential(nn.LayerNorm(hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.SiLU())
        self.features = hidden

    def read_view(self, view: View) -> Tensor:
        return view.codes.indices[:, 0]

    def read_trajectory(self, trajectory) -> Tensor:
        return trajectory.codes.indices

    def start(self, batch: int) -> None:
        return None

    def forward(self, seen: Tensor, carry: None) -> tuple[Tensor, None]:
        return self.body(self.table(seen + self.offset)), None

    def forward_sequence(self, seen: Tensor, carry: None) -> Tensor:
        return self.forward(seen.flatten(0, 1), None)[0].view(*seen.shape[:2], self.features)  # also of no rows


class CodesAndHNetwork(nn.Module, Part):
    """Codes as in CodesNetwork, together with the h that predicted them: memory without pixels, as STORM's policy has it."""

    needs_pixels, needs_h = False, True

    def __init__(self, *, shapes: Shapes, hidden: int = 512):
        super().__init__()
        check_width(hidden)
        self.codes = CodesNetwork(shapes=shapes, hidden=hidden)
        self.h = nn.Sequential(nn.Linear(shapes.dim, hidden), nn.LayerNorm(hidden), nn.SiLU())
        self.features = 2 * hidden

    def read_view(self, view: View) -> tuple[Tensor, Tensor]:
        return view.codes.indices[:, 0], view.h

    def read_trajectory(self, trajectory) -> tuple[Tensor, Tensor]:
        return trajectory.codes.indices, trajectory.h

    def start(self, batch: int) -> None:
        return None

    def forward(self, seen: tuple[Tensor, Tensor], carry: None) -> tuple[Tensor, None]:
        return torch.cat([self.codes(seen[0], None)[0], self.h(seen[1])], -1), None

    def forward_sequence(self, seen: tuple[Tensor, Tensor], carry: None) -> Tensor:
        return torch.cat([self.codes.forward_sequence(seen[0], None), self.h(seen[1])], -1)


class HNetwork(nn.Module, Part):
    """Two layers on h alone, for dynamics whose h says all that they know: Dreamer's policy."""

    needs_pixels, needs_h = False, True

    def __init__(self, *, shapes: Shapes, hidden: int = 512):
        super().__init__()
        check_width(hidden)
        layers = [nn.Linear(shapes.dim, hidden), nn.LayerNorm(hidden), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.SiLU())
        self.features = hidden

    def read_view(self, view: View) -> Tensor:
        return view.h

    def read_trajectory(self, trajectory) -> Tensor:
        return trajectory.h

    def start(self, batch: int) -> None:
        return None

    def forward(self, seen: Tensor, carry: None) -> tuple[Tensor, None]:
        return self.body(seen), None

    def forward_sequence(self, seen: Tensor, carry: None) -> Tensor:
        return self.body(seen)


def check_width(hidden: int) -> None:
    """Raise UserError for a layer without units."""
    if hidden < 1:
        raise UserError(f"policy.network.hidden must be at least 1, got {hidden}: choose e.g. 256")


def _split(carry: Tensor) -> tuple[Tensor, Tensor]:
    return carry[:, 0].unsqueeze(0).contiguous(), carry[:, 1].unsqueeze(0).contiguous()
