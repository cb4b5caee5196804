"""TensorBoard: event files in RUN/tensorboard, `tensorboard --logdir RUN` shows them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tokenworld.errors import UserError


class TensorBoard:
    """Writes next to the run's other files. What an interrupted run had logged after the checkpoint that it continues from is
    hidden. Raises UserError for a link instead of its folder."""

    package = "tensorboard"

    def __init__(self, *, folder: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        target = folder / "tensorboard"
        if target.is_symlink():
            raise UserError(f"{target} is a link, links are not written through: remove it")
        self.writer = SummaryWriter(str(target), purge_step=step + 1 if step else None)

    def log(self, numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def picture(self, name: str, path: Path, step: int) -> None:
        from PIL import Image

        with Image.open(path) as image:
            self.writer.add_image(name, np.array(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()
